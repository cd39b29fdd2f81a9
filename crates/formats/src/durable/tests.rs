use super::*;
use testkit::failing_writer::FailingWriter;
use testkit::test_dir::TestDir;

#[test]
fn a_failed_write_leaves_the_old_file_and_nothing_else() {
    let scratch = TestDir::new("failed-write");
    let path = scratch.path().join("state.json");
    write_bytes_atomically(&path, b"old").unwrap();
    for remaining_bytes in [0, 1, 1000, WRITE_BUFFER_BYTES, WRITE_BUFFER_BYTES + 1] {
        let error = write_atomically(&path, |inner| {
            FailingWriter { inner, remaining_bytes }.write_all(&vec![7u8; 3 * WRITE_BUFFER_BYTES])
        })
        .unwrap_err();
        assert!(error.is_disk_full(), "{error}");
        assert!(error.to_string().contains("state.json"), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(scratch.names(), ["state.json"]);
    }
    write_bytes_atomically(&path, b"new").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"new");
}

#[test]
fn a_reader_sees_the_old_file_until_the_rename() {
    let scratch = TestDir::new("until-rename");
    let path = scratch.path().join("a.txt");
    write_bytes_atomically(&path, b"old").unwrap();
    write_atomically(&path, |writer| {
        writer.write_all(b"new")?;
        writer.flush()?;
        assert_eq!(fs::read(&path).unwrap(), b"old");
        Ok(())
    })
    .unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"new");
}

#[test]
fn writing_into_a_missing_folder_names_it() {
    let scratch = TestDir::new("missing-folder");
    let path = scratch.path().join("none/a.txt");
    let error = write_bytes_atomically(&path, b"x").unwrap_err();
    assert!(error.to_string().contains("none"), "{error}");
}

#[test]
fn only_our_leftovers_are_removed() {
    let scratch = TestDir::new("leftovers");
    let keep = [".hidden", ".a.tmp", ".a.tmp-x-1", "a.tmp-1-2", "b.json"];
    for name in keep {
        fs::write(scratch.path().join(name), "x").unwrap();
    }
    fs::write(scratch.path().join(".b.json.tmp-4242-0"), "half").unwrap();
    fs::create_dir_all(scratch.path().join(".model.tmp-4242-1/inner")).unwrap();
    assert_eq!(remove_leftovers(scratch.path()).unwrap().len(), 2);
    let mut expected = keep.map(str::to_owned);
    expected.sort();
    assert_eq!(scratch.names(), expected);
}

#[test]
fn a_temporary_folder_is_shown_whole_never_overwrites_and_leaves_nothing() {
    let scratch = TestDir::new("commit-dir");
    let final_dir = scratch.path().join("model");
    let temporary = TemporaryDir::beside(&final_dir).unwrap();
    fs::create_dir(temporary.path().join("inner")).unwrap();
    fs::write(temporary.path().join("inner/a"), "a").unwrap();
    temporary.commit().unwrap();
    assert_eq!(scratch.names(), ["model"]);
    let second = TemporaryDir::beside(&final_dir).unwrap();
    let error = second.commit().unwrap_err();
    assert!(matches!(error, FormatError::Exists { .. }), "{error}");
    assert_eq!(fs::read_to_string(final_dir.join("inner/a")).unwrap(), "a");
    assert_eq!(scratch.names(), ["model"]);
}

#[test]
fn a_held_folder_is_refused_and_a_released_one_is_not() {
    let scratch = TestDir::new("lock");
    let lock = DirLock::acquire(scratch.path()).unwrap();
    let error = DirLock::acquire(scratch.path()).unwrap_err().to_string();
    assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
    drop(lock);
    DirLock::acquire(scratch.path()).unwrap();
}

#[test]
fn a_lock_file_that_is_a_link_is_refused_and_its_target_stays() {
    let scratch = TestDir::new("lock-link");
    let target = scratch.path().join("precious");
    fs::write(&target, "text").unwrap();
    let run = scratch.path().join("run");
    fs::create_dir(&run).unwrap();
    std::os::unix::fs::symlink(&target, run.join(".lock")).unwrap();
    DirLock::acquire(&run).unwrap_err();
    assert_eq!(fs::read_to_string(&target).unwrap(), "text");
}

#[test]
fn free_space_is_known_for_a_folder_and_an_error_for_none() {
    let scratch = TestDir::new("free");
    assert!(crate::free_disk_bytes(scratch.path()).unwrap() > 0);
    assert!(crate::free_disk_bytes(&scratch.path().join("none")).is_err());
}

#[test]
fn files_over_the_bound_are_not_read() {
    let scratch = TestDir::new("bounded");
    let path = scratch.path().join("a");
    fs::write(&path, [0u8; 10]).unwrap();
    assert_eq!(read_bounded(&path, 10).unwrap().len(), 10);
    assert!(matches!(read_bounded(&path, 9), Err(FormatError::TooLarge { got: 10, .. })));
    let device = read_bounded(Path::new("/dev/zero"), 9).unwrap_err().to_string();
    assert!(device.contains("/dev/zero"), "a device is no file: {device}");
}

#[test]
fn temporaries_of_dead_writers_go_and_others_stay() {
    let scratch = TestDir::new("dead");
    let make_old = |file: &File| {
        file.set_modified(std::time::SystemTime::now() - 2 * DEAD_AFTER).unwrap();
    };
    // That a process of this number lives says nothing: it may be another.
    let dead = format!(".model.tmp-{}-9", std::process::id());
    for name in [&dead, ".model.tmp-7-0", ".other.tmp-7-0", ".model.tmp-7-1"] {
        fs::create_dir(scratch.join(name)).unwrap();
        if name != ".model.tmp-7-1" {
            make_old(&File::open(scratch.join(name)).unwrap());
        }
    }
    let living = TemporaryDir::beside(&scratch.join("model")).unwrap();
    make_old(&File::open(living.path()).unwrap());
    let file = new_temporary_file(&scratch.join("model")).unwrap();
    make_old(&file.1);
    remove_dead_leftovers(&scratch.join("model")).unwrap();
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    let mut left = vec![name(living.path()), name(&file.0)];
    left.extend([".model.tmp-7-1", ".other.tmp-7-0"].map(str::to_owned));
    left.sort();
    assert_eq!(scratch.names(), left);
    // A file whose writer has gone.
    drop(file);
    remove_dead_leftovers(&scratch.join("model")).unwrap();
    assert_eq!(scratch.names().len(), 3);
}

#[test]
fn a_link_is_removed_by_its_name_and_what_cannot_be_removed_leaves_nothing() {
    let scratch = TestDir::new("remove-link");
    let target = scratch.join("target");
    fs::create_dir(&target).unwrap();
    fs::write(target.join("a"), "a").unwrap();
    std::os::unix::fs::symlink(&target, scratch.join("link")).unwrap();
    remove_dir_at_once(&scratch.join("link")).unwrap();
    assert_eq!(scratch.names(), ["target"]);
    assert!(target.join("a").is_file());
    // A file is no folder: the rename onto the new name is refused.
    fs::write(scratch.join("file"), "x").unwrap();
    remove_dir_at_once(&scratch.join("file")).unwrap_err();
    remove_dir_at_once(&scratch.join("none")).unwrap_err();
    assert_eq!(scratch.names(), ["file", "target"]);
    remove_dir_at_once(&target).unwrap();
    assert_eq!(scratch.names(), ["file"]);
}

#[test]
fn text_that_is_not_utf8_is_refused_with_the_place() {
    let scratch = TestDir::new("text");
    let path = scratch.join("a.toml");
    fs::write(&path, b"a = \xff").unwrap();
    let error = read_text(&path, 10).unwrap_err().to_string();
    assert!(error.contains("not UTF-8 at byte 4"), "{error}");
    fs::write(&path, "a = 1").unwrap();
    assert_eq!(read_text(&path, 5).unwrap(), "a = 1");
    assert!(matches!(read_text(&path, 4), Err(FormatError::TooLarge { .. })));
}
