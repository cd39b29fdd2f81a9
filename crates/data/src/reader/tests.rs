use super::*;
use proptest::prelude::*;
use testkit::test_dir::TestDir;

fn file(dir: &TestDir, name: &str, bytes: impl AsRef<[u8]>) {
    let path = dir.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

#[test]
fn text_files_are_read_in_path_order_and_the_rest_is_counted() {
    let scratch = TestDir::new("reader-order");
    file(&scratch, "b/two.MD", "two");
    file(&scratch, "a.txt", "one");
    file(&scratch, "b/a/three.txt", "three");
    file(&scratch, "b/empty.txt", "\n \n");
    file(&scratch, "picture.png", [0u8, 1]);
    file(&scratch, ".hidden.txt", "no");
    file(&scratch, ".git/config.txt", "no");
    let (documents, report) = read_folder(scratch.path()).unwrap();
    let kinds: Vec<_> = documents.iter().map(|document| document.kind.as_str()).collect();
    assert_eq!(kinds, ["a.txt", "b/a/three.txt", "b/two.MD"]);
    let expected = ReadReport {
        n_files: 3,
        n_documents: 3,
        n_bytes: 11,
        n_files_split: 0,
        n_empty_files: 1,
        n_hidden: 2,
        n_other_files: 1,
    };
    assert_eq!(report, expected);
    assert!(report.to_string().contains("skipped: 1 empty, 2 hidden, 1 of other kinds"));
}

#[test]
fn text_is_normalised() {
    let scratch = TestDir::new("reader-normalise");
    file(&scratch, "a.txt", "\u{feff}\r\ne\u{301}te\u{301}\r\nold mac\rend  \r\n\r\n");
    let (documents, _) = read_folder(scratch.path()).unwrap();
    assert_eq!(documents[0].text, "\u{e9}t\u{e9}\nold mac\nend");
}

#[test]
fn what_is_not_text_is_named_with_the_place() {
    let scratch = TestDir::new("reader-bad");
    file(&scratch, "a.txt", "good");
    file(&scratch, "b.txt", b"abc\xff\xfe");
    let error = read_folder(scratch.path()).unwrap_err();
    assert!(matches!(&error, DataError::InvalidUtf8 { offset: 3, .. }), "{error}");
    assert!(error.to_string().contains("b.txt"), "{error}");
    file(&scratch, "b.txt", b"ab\0c\xff");
    let error = read_folder(scratch.path()).unwrap_err();
    assert!(matches!(&error, DataError::Binary { offset: 2, .. }), "{error}");
}

#[test]
fn folders_without_text_say_what_they_hold() {
    let scratch = TestDir::new("reader-empty");
    assert!(matches!(read_folder(scratch.path()), Err(DataError::EmptyFolder { .. })));
    file(&scratch, "a.pdf", "x");
    assert!(matches!(read_folder(scratch.path()), Err(DataError::NoText { n_files: 1, .. })));
    file(&scratch, "b.txt", "");
    assert!(matches!(read_folder(scratch.path()), Err(DataError::NoText { n_files: 2, .. })));
    let error = read_folder(&scratch.path().join("none")).unwrap_err();
    assert!(
        matches!(&error, DataError::Io { .. }) && error.to_string().contains("none"),
        "{error}"
    );
    assert!(read_folder(&scratch.path().join("a.pdf")).is_err(), "a file is not a folder");
}

#[test]
fn a_pipe_that_takes_the_place_of_a_file_is_refused_without_waiting_for_a_writer() {
    let scratch = TestDir::new("reader-pipe");
    file(&scratch, "a.txt", "one");
    let mut reader = FolderReader::open(scratch.path()).unwrap();
    let path = scratch.path().join("a.txt");
    fs::remove_file(&path).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
    let error = reader.next().unwrap().unwrap_err().to_string();
    assert!(error.contains("a.txt") && error.contains("not a regular file"), "{error}");
}

#[test]
fn links_are_not_followed() {
    let scratch = TestDir::new("reader-link");
    file(&scratch, "a.txt", "one");
    std::os::unix::fs::symlink(scratch.path(), scratch.path().join("loop")).unwrap();
    std::os::unix::fs::symlink(scratch.path().join("a.txt"), scratch.path().join("b.txt")).unwrap();
    std::os::unix::fs::symlink(scratch.path().join("none"), scratch.path().join("c.txt")).unwrap();
    let (documents, report) = read_folder(scratch.path()).unwrap();
    assert_eq!((documents.len(), report.n_other_files), (1, 3));
}

#[test]
fn large_files_are_cut_between_paragraphs() {
    let scratch = TestDir::new("reader-large");
    let paragraph = "mot ".repeat(100);
    let text = vec![paragraph.trim(); 1000].join("\n\n");
    file(&scratch, "a.txt", &text);
    let (documents, report) = read_folder(scratch.path()).unwrap();
    assert_eq!(report.n_files_split, 1);
    assert!(documents.iter().all(|document| document.text.len() <= MAX_DOCUMENT_BYTES));
    assert!(documents.iter().all(|document| document.text.len() % 401 == 399), "whole paragraphs");
    let texts: Vec<_> = documents.into_iter().map(|document| document.text).collect();
    assert_eq!(texts.join("\n\n"), text);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn cutting_loses_white_space_only(
        unit in "[a-zé\u{1f600}]{1,30}( |\n|\n\n)?",
        n in 1usize..10_000,
    ) {
        let text = normalise(&unit.repeat(n));
        let pieces = split_text(&text);
        prop_assert!(pieces.iter().all(|piece| piece.len() <= MAX_DOCUMENT_BYTES && !piece.is_empty()));
        let letters = |text: &str| text.chars().filter(|c| !c.is_whitespace()).collect::<String>();
        prop_assert_eq!(letters(&pieces.concat()), letters(&text));
    }
}

fn documents(n: usize, language: Option<Language>) -> Vec<Document> {
    let document =
        |i| Document { language, kind: "story".to_owned(), text: format!("{language:?} {i}") };
    (0..n).map(document).collect()
}

#[test]
fn a_share_of_each_language_is_held_out() {
    let mut all = documents(100, Some(Language::French));
    all.extend(documents(3, Some(Language::German)));
    all.extend(documents(1, None));
    let split = hold_out(all.clone(), 0.1, 7).unwrap();
    let n_held_out = |language| split.held_out.iter().filter(|d| d.language == language).count();
    assert_eq!(n_held_out(Some(Language::French)), 10);
    assert_eq!(n_held_out(Some(Language::German)), 1);
    assert_eq!(n_held_out(None), 0);
    assert_eq!(split.train.len() + split.held_out.len(), all.len());
    assert!(split.held_out.iter().all(|document| !split.train.contains(document)));
    assert_eq!(hold_out(all.clone(), 0.1, 7).unwrap(), split);
    assert_ne!(hold_out(all.clone(), 0.1, 8).unwrap(), split);
    assert!(hold_out(all.clone(), 0.0, 7).unwrap().held_out.is_empty());
    for share in [-0.1, 0.51, f64::NAN] {
        assert!(hold_out(all.clone(), share, 7).is_err());
    }
}
