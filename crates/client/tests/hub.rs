//! Lists and downloads against a hub on a local port.
#![expect(clippy::unwrap_used, reason = "the helpers of tests panic as tests do")]

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;

use client::{ClientError, Downloaded, Hub, RemoteFile, Repository, Revision, partial_path};
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
    assert!(!partial_path(&path).exists());
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
    fs::write(partial_path(&path), &weights()[..123_456]).unwrap();
    let got = download(&hub, &repository, "model.safetensors", &path).unwrap();
    assert_eq!(got, Downloaded { n_kept: 123_456, n_fetched: N_BYTES as u64 - 123_456 });
    assert!(fs::read(&path).unwrap() == weights());

    // A server without ranges sends the whole, which is right all the same.
    fs::rename(&path, partial_path(&path)).unwrap();
    fs::OpenOptions::new().write(true).open(partial_path(&path)).unwrap().set_len(5).unwrap();
    fake.fail_with([Fault::Whole]);
    download(&hub, &repository, "model.safetensors", &path).unwrap();
    assert!(fs::read(&path).unwrap() == weights());

    // Whole already, and longer than it can be.
    fs::rename(&path, partial_path(&path)).unwrap();
    let _ = fake.take_requests();
    download(&hub, &repository, "model.safetensors", &path).unwrap();
    assert_eq!(fake.take_requests(), [], "nothing was missing");
    fs::write(partial_path(&path), vec![0; N_BYTES + 1]).unwrap();
    download(&hub, &repository, "model.safetensors", &path).unwrap();
    assert!(fs::read(&path).unwrap() == weights());
}

#[test]
fn a_stop_keeps_what_arrived() {
    let dir = TestDir::new("client-stop");
    let (_fake, hub, repository) = hub_with_weights();
    let path = dir.path().join("model.safetensors");
    let stopped =
        hub.download(&repository, file(&repository, "model.safetensors"), &path, &mut |n| {
            if n >= 200_000 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
    let Err(ClientError::Stopped { n_bytes, .. }) = stopped else { panic!("{stopped:?}") };
    assert_eq!(fs::metadata(partial_path(&path)).unwrap().len(), n_bytes);
    let got = download(&hub, &repository, "model.safetensors", &path).unwrap();
    assert_eq!(got.n_kept, n_bytes);
    assert!(fs::read(&path).unwrap() == weights());
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
        assert!(!path.exists() && !partial_path(&path).exists(), "{name}");
    }
    let path = dir.path().join("model.safetensors");
    fake.fail_with([Fault::Longer]);
    let refused = download(&hub, &repository, "model.safetensors", &path);
    assert!(matches!(refused, Err(ClientError::Answer { .. })), "{refused:?}");
    assert!(!path.exists());
}

#[test]
fn refusals_say_what_was_asked_and_what_to_do() {
    let dir = TestDir::new("client-refused");
    let (fake, hub, repository) = hub_with_weights();
    let unknown = hub.repository(&"acme/other".parse().unwrap(), &Revision::main()).unwrap_err();
    assert!(matches!(unknown, ClientError::Status { status: 404, .. }), "{unknown}");
    assert!(unknown.to_string().contains("acme/other"), "{unknown}");
    fake.fail_with([Fault::Status(403)]);
    let path = dir.path().join("config.json");
    let gated = download(&hub, &repository, "config.json", &path).unwrap_err();
    assert!(gated.hint().unwrap().contains("HF_TOKEN"), "{gated}");
    assert!(!gated.to_string().contains("secret"), "{gated}");
    // Nobody listens there.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let nobody = Hub::new(&format!("http://127.0.0.1:{port}"), None).unwrap();
    let error = nobody.repository(&REPOSITORY.parse().unwrap(), &Revision::main()).unwrap_err();
    assert!(matches!(error, ClientError::Unreachable { .. }), "{error}");
}
