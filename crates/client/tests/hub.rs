//! Lists and downloads against a hub on a local port.
#![expect(clippy::unwrap_used, reason = "the helpers of tests panic as tests do")]

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;

use client::{ClientError, Downloaded, FileDigest, Hub, RemoteFile, Repository, Revision};
use testkit::hub::{COMMIT, FakeHub, Fault, REPOSITORY};
use testkit::random::Rng;
use testkit::test_dir::TestDir;

const N_BYTES: usize = 1_000_000;

fn weights() -> Vec<u8> {
    let mut rng = Rng::new(5);
    (0..N_BYTES).map(|_| rng.below(256) as u8).collect()
}

fn hub_with_weights() -> (FakeHub, Hub, Repository) {
    let files = vec![
        ("config.json".to_owned(), b"{}\n".to_vec()),
        ("model.safetensors".to_owned(), weights()),
        ("empty.txt".to_owned(), Vec::new()),
    ];
    let fake = FakeHub::start(files);
    let hub = Hub::new(&fake.endpoint(), Some("secret")).unwrap();
    let repository = hub.repository(&REPOSITORY.parse().unwrap(), &Revision::main()).unwrap();
    let _ = fake.take_requests();
    (fake, hub, repository)
}

fn file<'a>(repository: &'a Repository, path: &str) -> &'a RemoteFile {
    repository.files.iter().find(|file| file.path == path).unwrap()
}

fn download(
    hub: &Hub,
    repository: &Repository,
    name: &str,
    to: &Path,
) -> Result<Downloaded, ClientError> {
    hub.download(repository, file(repository, name), to, &mut |_| ControlFlow::Continue(()))
}

#[test]
fn files_arrive_whole_and_the_token_stays_with_the_hub() {
    let dir = TestDir::new("client-whole");
    let (fake, hub, repository) = hub_with_weights();
    assert_eq!(repository.commit, COMMIT);
    assert_eq!(repository.files.len(), 3);
    let path = dir.path().join("model.safetensors");
    let got = download(&hub, &repository, "model.safetensors", &path).unwrap();
    assert_eq!(got, Downloaded { n_kept: 0, n_fetched: N_BYTES as u64 });
    assert!(fs::read(&path).unwrap() == weights());
    assert_eq!(dir.names(), ["model.safetensors"]);
    let requests = fake.take_requests();
    let [to_hub, to_storage] = &requests[..] else { panic!("{requests:?}") };
    assert_eq!(to_hub.authorization.as_deref(), Some("Bearer secret"));
    assert!(to_storage.path.starts_with("/storage/"));
    assert_eq!(to_storage.authorization, None, "another host gets no token");
    for name in ["config.json", "empty.txt"] {
        let path = dir.path().join(name);
        download(&hub, &repository, name, &path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().len(), file(&repository, name).n_bytes);
    }
}

#[test]
fn a_broken_connection_is_made_again_from_where_it_broke() {
    let dir = TestDir::new("client-broken");
    let (fake, hub, repository) = hub_with_weights();
    let path = dir.path().join("model.safetensors");
    fake.fail_with([Fault::BreakAfter(300_000), Fault::Status(503), Fault::BreakAfter(100_000)]);
    let got = download(&hub, &repository, "model.safetensors", &path).unwrap();
    assert_eq!(got.n_fetched, N_BYTES as u64, "nothing is sent twice");
    assert!(fs::read(&path).unwrap() == weights());
    let ranges: Vec<_> =
        fake.take_requests().into_iter().filter_map(|request| request.range).collect();
    assert!(ranges.contains(&"bytes=400000-".to_owned()), "{ranges:?}");
}

#[test]
fn what_an_earlier_try_left_is_kept() {
    let dir = TestDir::new("client-resume");
    let (fake, hub, repository) = hub_with_weights();
    let path = dir.path().join("model.safetensors");
    let partial = file(&repository, "model.safetensors").partial_path(&path);
    fs::write(&partial, &weights()[..123_456]).unwrap();
    let got = download(&hub, &repository, "model.safetensors", &path).unwrap();
    assert_eq!(got, Downloaded { n_kept: 123_456, n_fetched: N_BYTES as u64 - 123_456 });
    assert!(fs::read(&path).unwrap() == weights());

    // A server without ranges sends the whole, which is right all the same.
    fs::rename(&path, &partial).unwrap();
    fs::OpenOptions::new().write(true).open(&partial).unwrap().set_len(5).unwrap();
    fake.fail_with([Fault::Whole]);
    let got = download(&hub, &repository, "model.safetensors", &path).unwrap();
    assert_eq!(got, Downloaded { n_kept: 0, n_fetched: N_BYTES as u64 });
    assert!(fs::read(&path).unwrap() == weights());

    // Whole already, and longer than it can be.
    fs::rename(&path, &partial).unwrap();
    let _ = fake.take_requests();
    download(&hub, &repository, "model.safetensors", &path).unwrap();
    assert_eq!(fake.take_requests(), [], "nothing was missing");
    fs::rename(&path, &partial).unwrap();
    fs::write(&partial, vec![0; N_BYTES + 1]).unwrap();
    download(&hub, &repository, "model.safetensors", &path).unwrap();
    assert!(fs::read(&path).unwrap() == weights());
}

#[test]
fn a_file_that_is_there_is_kept_where_it_is_the_listed_one_and_fetched_anew_where_not() {
    let dir = TestDir::new("client-there");
    let (fake, hub, repository) = hub_with_weights();
    let path = dir.path().join("model.safetensors");
    let mut changed = weights();
    changed[500_000] ^= 1;
    let part_of_another =
        RemoteFile { digest: FileDigest::Sha256("0a".repeat(32)), ..repository.files[0].clone() };
    for (there, n_kept) in [(weights(), N_BYTES), (changed, 0), (weights()[1..].to_vec(), 0)] {
        fs::write(&path, there).unwrap();
        fs::write(part_of_another.partial_path(&path), "of another commit").unwrap();
        let _ = fake.take_requests();
        let got = download(&hub, &repository, "model.safetensors", &path).unwrap();
        assert_eq!((got.n_kept, got.n_bytes()), (n_kept as u64, N_BYTES as u64));
        assert!(fs::read(&path).unwrap() == weights());
        let asked = fake.take_requests();
        assert!(asked.iter().all(|request| request.range.is_none()), "{asked:?}");
        assert_eq!(asked.is_empty(), n_kept > 0, "{asked:?}");
    }
}

#[test]
fn a_stop_keeps_what_arrived() {
    let dir = TestDir::new("client-stop");
    let (fake, hub, repository) = hub_with_weights();
    let path = dir.path().join("model.safetensors");
    let remote = file(&repository, "model.safetensors");
    let stop_when = |is_enough: &dyn Fn(Downloaded) -> bool| {
        let stopped = hub.download(&repository, remote, &path, &mut |so_far| {
            if is_enough(so_far) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        assert!(matches!(stopped, Err(ClientError::Stopped { .. })), "{stopped:?}");
        fs::metadata(remote.partial_path(&path)).unwrap().len()
    };
    let n_bytes = stop_when(&|so_far| so_far.n_fetched >= 200_000);
    assert!((200_000..N_BYTES as u64).contains(&n_bytes), "{n_bytes}");
    // Also while what is there is summed up, a whole file included.
    let _ = fake.take_requests();
    assert_eq!(stop_when(&|so_far| so_far.n_kept > 0), n_bytes);
    assert_eq!(fake.take_requests(), []);
    let got = download(&hub, &repository, "model.safetensors", &path).unwrap();
    assert_eq!(got.n_kept, n_bytes);
    let stopped = hub.download(&repository, remote, &path, &mut |_| ControlFlow::Break(()));
    assert!(matches!(stopped, Err(ClientError::Stopped { .. })), "{stopped:?}");
    assert!(fs::read(&path).unwrap() == weights());
}

/// The error that the wait was for came in place of the stop.
#[test]
fn a_stop_is_heard_while_the_next_try_is_awaited() {
    let dir = TestDir::new("client-wait");
    let (fake, hub, repository) = hub_with_weights();
    let path = dir.path().join("config.json");
    fake.fail_with([Fault::Status(503)]);
    let stopped = hub.download(&repository, file(&repository, "config.json"), &path, &mut |_| {
        let is_asked = !fake.take_requests().is_empty();
        if is_asked { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert!(matches!(stopped, Err(ClientError::Stopped { .. })), "{stopped:?}");

    let path = dir.path().join("model.safetensors");
    let remote = file(&repository, "model.safetensors");
    fake.fail_with([Fault::BreakAfter(300_000)]);
    let mut last = None;
    let stopped = hub.download(&repository, remote, &path, &mut |so_far| {
        // Told twice of the same bytes once they were there: nothing more comes.
        let is_waiting = so_far.n_fetched > 0 && last == Some(so_far);
        last = Some(so_far);
        if is_waiting { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert!(matches!(stopped, Err(ClientError::Stopped { .. })), "{stopped:?}");
    assert_eq!(fs::metadata(remote.partial_path(&path)).unwrap().len(), 300_000);
}

#[test]
fn bytes_that_are_not_those_of_the_list_are_not_kept() {
    let dir = TestDir::new("client-damaged");
    let (fake, hub, repository) = hub_with_weights();
    for name in ["model.safetensors", "config.json"] {
        let path = dir.path().join(name);
        fake.fail_with([Fault::Damaged]);
        let refused = download(&hub, &repository, name, &path);
        assert!(matches!(refused, Err(ClientError::Digest { .. })), "{name}: {refused:?}");
        assert_eq!(dir.names(), [""; 0], "{name}");
    }
    let path = dir.path().join("model.safetensors");
    fake.fail_with([Fault::Longer]);
    let refused = download(&hub, &repository, "model.safetensors", &path);
    assert!(matches!(refused, Err(ClientError::Answer { .. })), "{refused:?}");
    assert!(!path.exists());
}

#[test]
fn a_list_is_one_of_the_asked_commit_and_not_endless() {
    let name = REPOSITORY.parse().unwrap();
    let long = FakeHub::start(vec![("x".repeat(33 << 20), Vec::new())]);
    let hub = Hub::new(&long.endpoint(), None).unwrap();
    // No matter of the network.
    let error = hub.repository(&name, &Revision::main()).unwrap_err();
    assert!(matches!(error, ClientError::Answer { .. }), "{error}");
    assert!(error.to_string().ends_with("is longer than 33554432 bytes"), "{error}");
    let (_fake, hub, _) = hub_with_weights();
    assert!(hub.repository(&name, &COMMIT.to_uppercase().parse().unwrap()).is_ok());
    let error = hub.repository(&name, &"f".repeat(40).parse().unwrap()).unwrap_err();
    assert!(error.to_string().contains(&format!("\"{COMMIT}\", expected ffff")), "{error}");
}

#[test]
fn refusals_say_what_was_asked() {
    let dir = TestDir::new("client-refused");
    let (fake, hub, repository) = hub_with_weights();
    let unknown = hub.repository(&"acme/other".parse().unwrap(), &Revision::main()).unwrap_err();
    assert!(matches!(unknown, ClientError::Status { status: 404, .. }), "{unknown}");
    assert!(unknown.to_string().contains("acme/other"), "{unknown}");
    fake.fail_with([Fault::Status(403)]);
    let path = dir.path().join("config.json");
    let gated = download(&hub, &repository, "config.json", &path).unwrap_err();
    assert!(matches!(gated, ClientError::Status { status: 403, .. }), "{gated}");
    assert!(!gated.to_string().contains("secret"), "{gated}");
    // Nobody listens there.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let nobody = Hub::new(&format!("http://127.0.0.1:{port}"), None).unwrap();
    let error = nobody.repository(&REPOSITORY.parse().unwrap(), &Revision::main()).unwrap_err();
    assert!(matches!(error, ClientError::Unreachable { .. }), "{error}");
}
