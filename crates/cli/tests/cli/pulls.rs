//! `model import hf:...` against a model hub on a local port.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};

use testkit::golden::workspace_root;
use testkit::hub::{COMMIT, FakeHub, Fault};
use testkit::test_dir::names_in;

use crate::home::{Finished, Home, signal};

/// The files of a golden model, and what else a repository holds.
fn files_of(model: &str, more: &[(&str, &[u8])]) -> Vec<(String, Vec<u8>)> {
    let dir = workspace_root().join("golden/architectures").join(model);
    let named =
        names_in(&dir).into_iter().map(|name| (name.clone(), fs::read(dir.join(name)).unwrap()));
    named.chain(more.iter().map(|&(name, bytes)| (name.to_owned(), bytes.to_vec()))).collect()
}

fn import(home: &Home, hub: &FakeHub, source: &str, more: &[&str]) -> Finished {
    let arguments = ["model", "import", source, "--endpoint", &hub.endpoint()];
    home.run(&[&arguments[..], more].concat())
}

#[test]
fn a_model_comes_from_a_hub_with_its_licence_and_says_where_from() {
    let home = Home::new("pull");
    let card = b"---\nlicense: apache-2.0\n---\n";
    let hub = FakeHub::start(files_of("mistral/hf", &[("README.md", card), ("logo.png", b"png")]));
    let shown = import(&home, &hub, "hf:acme/tiny", &["--json"]).expect(0).json();
    assert_eq!((&shown["name"], &shown["licence"]), (&"tiny".into(), &"apache-2.0".into()));
    let dir = home.inside("models/tiny");
    assert_eq!(names_in(&dir), ["README.md", "config.json", "galerne.json", "model.safetensors"]);
    assert_eq!(names_in(&home.inside("models/.pulls")), [""; 0], "nothing is left behind");
    let lineage =
        home.run(&["model", "inspect", "tiny", "--json"]).expect(0).json()["lineage"].clone();
    let source = format!("hf:acme/tiny@{COMMIT} from {}", hub.endpoint());
    assert_eq!(lineage["source"], source);
    let ids = ["--token-ids", "1,5,9", "--max-tokens", "4", "--json"];
    home.run(&[&["generate", "--model", "tiny"][..], &ids].concat()).expect(0);

    // The name is taken: nothing is asked for.
    let _ = hub.take_requests();
    let again = import(&home, &hub, "hf:acme/tiny", &[]).expect(1);
    assert!(again.stderr.contains("exists already"), "{}", again.stderr);
    assert_eq!(hub.take_requests(), []);
}

/// Such a model came without its `galerne.json`, and with it went a licence that stood nowhere else.
#[test]
fn a_model_that_was_made_here_keeps_its_lineage() {
    let home = Home::new("pull-lineage");
    let lineage = br#"{"format_version": 1, "run": "r-1", "parent": "base", "licence": "mrl"}"#;
    let hub = FakeHub::start(files_of("mistral/hf", &[("galerne.json", lineage)]));
    let said = import(&home, &hub, "hf:acme/tiny", &[]).expect(0).stderr;
    assert!(said.contains("warning: the licence, mrl, is for research only"), "{said}");
    let kept = home.run(&["model", "inspect", "tiny", "--json"]).expect(0).json();
    let kept = &kept["lineage"];
    assert_eq!((&kept["run"], &kept["parent"]), (&"r-1".into(), &"base".into()), "{kept}");
    assert!(kept["source"].as_str().unwrap().starts_with("hf:acme/tiny@"), "{kept}");
}

#[test]
fn a_download_that_failed_goes_on() {
    let home = Home::new("pull-resume");
    let hub = FakeHub::start(files_of("mistral/hf", &[]));
    // The configuration, the smaller file, arrives; the weights break off and then are refused.
    hub.fail_with([Fault::Whole, Fault::BreakAfter(10_000), Fault::Status(404)]);
    let failed = import(&home, &hub, "hf:acme/tiny", &[]).expect(1);
    assert!(failed.stderr.contains("404"), "{}", failed.stderr);
    assert!(!home.inside("models/tiny").exists());
    let _ = hub.take_requests();
    import(&home, &hub, "hf:acme/tiny", &[]).expect(0);
    let asked: Vec<_> =
        hub.take_requests().into_iter().filter_map(|request| request.range).collect();
    assert_eq!(asked.last().map(String::as_str), Some("bytes=10000-"), "{asked:?}");
    home.run(&["model", "inspect", "tiny"]).expect(0);
}

/// The weights were fetched again for a changed line of the card.
#[test]
fn a_branch_that_moved_fetches_only_what_changed() {
    let home = Home::new("pull-moved");
    let before = FakeHub::start(files_of("mistral/hf", &[("README.md", b"one")]));
    before.fail_with([Fault::Whole, Fault::Whole, Fault::BreakAfter(10_000), Fault::Status(404)]);
    import(&home, &before, "hf:acme/tiny", &[]).expect(1);
    let commit = "89abcdef0123456789abcdef0123456789abcdef";
    let after = FakeHub::start_at(commit, files_of("mistral/hf", &[("README.md", b"two")]));
    import(&home, &after, "hf:acme/tiny", &[]).expect(0);
    let asked = after.take_requests();
    assert!(asked.iter().all(|request| !request.path.contains("config.json")), "{asked:?}");
    assert_eq!(asked.last().unwrap().range.as_deref(), Some("bytes=10000-"), "{asked:?}");
    assert_eq!(fs::read(home.inside("models/tiny/README.md")).unwrap(), b"two");
    let shown = home.run(&["model", "inspect", "tiny", "--json"]).expect(0).json();
    assert!(shown["lineage"]["source"].as_str().unwrap().contains(commit), "{shown}");
}

#[test]
fn a_signal_while_the_hub_is_busy_ends_the_wait_and_keeps_what_arrived() {
    let home = Home::new("pull-signal");
    let hub = FakeHub::start(files_of("mistral/hf", &[]));
    hub.fail_with([Fault::Whole, Fault::Status(503), Fault::Status(503), Fault::Status(503)]);
    let arguments = ["model", "import", "hf:acme/tiny", "--endpoint", &hub.endpoint()];
    let child = home.command(&arguments).spawn().unwrap();
    home.wait_until("the weights to be asked for", || {
        hub.take_requests().iter().any(|request| request.path.contains("/storage/"))
    });
    signal(&child, "-INT");
    let stopped = Finished::of(child).expect(130).stderr;
    assert!(stopped.contains("the same command goes on"), "{stopped}");
    let n_bytes = files_of("mistral/hf", &[])[0].1.len();
    assert!(stopped.contains(&format!("{n_bytes} B of ")), "{stopped}");
    assert!(!home.inside("models/tiny").exists());
}

#[test]
fn what_an_earlier_try_left_is_not_believed() {
    let home = Home::new("pull-strange");
    let hub = FakeHub::start(files_of("mistral/hf", &[]));
    hub.fail_with([Fault::Whole, Fault::Status(404)]);
    import(&home, &hub, "hf:acme/tiny", &[]).expect(1);
    let place = home.inside("models/.pulls");
    let dir = place.join(&names_in(&place)[0]).join("model");
    fs::write(dir.join("tokenizer.json"), "{}").unwrap();
    fs::write(dir.join("config.json"), "{}").unwrap();
    import(&home, &hub, "hf:acme/tiny", &[]).expect(0);
    let names = names_in(&home.inside("models/tiny"));
    assert_eq!(names, ["config.json", "galerne.json", "model.safetensors"]);
    let config = fs::read(home.inside("models/tiny/config.json")).unwrap();
    assert!(config == files_of("mistral/hf", &[])[0].1);
}

#[test]
fn one_of_several_gguf_files_is_named() {
    let home = Home::new("pull-gguf");
    let gguf = files_of("mistral/gguf", &[]).remove(0).1;
    let files = ["a.Q4_K_M.gguf", "a.Q8_0.gguf"].map(|name| (name.to_owned(), gguf.clone()));
    let hub = FakeHub::start(files.to_vec());
    let many = import(&home, &hub, "hf:acme/tiny", &[]).expect(1).stderr;
    assert!(many.contains("hf:acme/tiny/a.Q8_0.gguf  ") && many.contains("2 GGUF files"), "{many}");
    let token = home.path("token");
    fs::write(&token, "secret\n").unwrap();
    let arguments = ["model", "import", "hf:acme/tiny/a.Q8_0.gguf", "--endpoint", &hub.endpoint()];
    let _ = hub.take_requests();
    // A token for one hub is not for another, unless the user says so.
    for (name, flag, sent) in
        [("closed", &[][..], None), ("a-Q8_0", &["--send-token"], Some("Bearer secret"))]
    {
        let mut command = home.command(&[&arguments[..], &["--name", name], flag].concat());
        let done = Finished::new(command.env("HF_TOKEN_FILE", &token).output().unwrap()).expect(0);
        assert_eq!(done.stderr.contains("is not sent to http"), sent.is_none(), "{}", done.stderr);
        let files = ["a.Q8_0.gguf", "galerne.json"];
        assert_eq!(names_in(&home.inside(&format!("models/{name}"))), files);
        let first = hub.take_requests().swap_remove(0);
        assert_eq!(first.authorization.as_deref(), sent);
    }
    fs::write(&token, "\n").unwrap();
    let mut command = home.command(&["model", "import", "hf:acme/tiny"]);
    let empty = Finished::new(command.env("HF_TOKEN_FILE", &token).output().unwrap()).expect(2);
    assert!(empty.stderr.contains("HF_TOKEN_FILE: ") && empty.stderr.contains("token is empty"));
}

/// They were offered, and then were missing.
#[test]
fn gguf_files_in_folders_are_not_offered() {
    let home = Home::new("pull-folders");
    let gguf = files_of("mistral/gguf", &[]).remove(0).1;
    let names = ["a.Q4_K_M.gguf", "a.Q8_0.gguf", "BF16/a-1.gguf", r"x\nhint: run this.gguf"];
    let more = (0..60).map(|n| format!("b-{n}.gguf"));
    let names = names.map(str::to_owned).into_iter().chain(more);
    let hub = FakeHub::start(names.map(|name| (name, gguf.clone())).collect());
    let many = import(&home, &hub, "hf:acme/tiny", &[]).expect(1).stderr;
    assert!(many.contains("hf:acme/tiny/a.Q8_0.gguf  "), "{many}");
    assert!(many.contains("are not taken; GGUF files among them: 2"), "{many}");
    assert!(!many.contains("BF16") && !many.contains("run this"), "{many}");
    assert!(many.contains("b-47.gguf") && many.contains("and 12 more"), "{many}");
    assert_eq!(many.matches("hf:acme/tiny/").count(), 50, "{many}");
}

#[test]
fn a_file_beside_the_weights_has_a_bound() {
    let home = Home::new("pull-bound");
    let hub = FakeHub::start(files_of("mistral/hf", &[("README.md", b"x")]));
    hub.tell_size("README.md", (1 << 30) + 1);
    let refused = import(&home, &hub, "hf:acme/tiny", &[]).expect(1).stderr;
    assert!(refused.contains("hf:acme/tiny/README.md") && refused.contains("1073741825"));
    // The weights may be larger, and this disk may be too small for them.
    hub.tell_size("README.md", 1);
    hub.tell_size("model.safetensors", 1 << 44);
    let refused = import(&home, &hub, "hf:acme/tiny", &[]).expect(1).stderr;
    assert!(refused.contains("the model needs 16.0 TiB and a reserve of 256.0 MiB"), "{refused}");
}

#[test]
fn a_model_that_cannot_be_computed_is_refused_before_its_weights_arrive() {
    let home = Home::new("pull-unknown");
    let config = br#"{"model_type": "mamba", "hidden_size": 8}"#;
    let files = [("config.json", &config[..]), ("model.safetensors", &[0; 100_000][..])];
    let hub = FakeHub::start(files.map(|(name, bytes)| (name.to_owned(), bytes.to_vec())).to_vec());
    let refused = import(&home, &hub, "hf:acme/tiny", &[]).expect(1);
    assert!(refused.stderr.contains("mamba"), "{}", refused.stderr);
    let asked = hub.take_requests();
    assert!(asked.iter().all(|request| !request.path.contains("safetensors")), "{asked:?}");
    // Nor at the second try, when the configuration is there already.
    import(&home, &hub, "hf:acme/tiny", &[]).expect(1);
    let asked = hub.take_requests();
    assert!(asked.iter().all(|request| !request.path.contains("safetensors")), "{asked:?}");
}

#[test]
fn wrong_sources_are_wrong_usage() {
    let home = Home::new("pull-usage");
    for (arguments, expected) in [
        (&["model", "import", "hf:acme"][..], "expected OWNER/NAME"),
        (&["model", "import", "hf:acme/tiny", "--endpoint", "acme"], "is no address of a hub"),
        (&["model", "import", "./x", "--revision", "main"], "are for hf:OWNER/NAME"),
        (&["model", "import", "./x", "--send-token"], "are for hf:OWNER/NAME"),
        (&["model", "import", "hf:acme/tiny", "--revision", "a b"], "is no revision"),
        (&["model", "import", "hf:acme/tiny/"], "`` is no GGUF file"),
        (&["model", "import", "hf:acme/tiny/Q4/a.gguf"], "`Q4/a.gguf` is no GGUF file outside"),
    ] {
        let refused = home.run(arguments).expect(2);
        assert!(refused.stderr.contains(expected), "{arguments:?}: {}", refused.stderr);
    }
}

/// Tunnels one connection, and answers what comes through it in place of the host; gives both requests.
fn answer_as_proxy(listener: &TcpListener) -> [String; 2] {
    let (stream, _) = listener.accept().unwrap();
    [&b"HTTP/1.1 200 OK\r\n\r\n"[..], b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"].map(
        |answer| {
            let request = read_request(&stream);
            (&stream).write_all(answer).unwrap();
            request
        },
    )
}

fn read_request(stream: &TcpStream) -> String {
    let lines = BufReader::new(stream).lines().map(Result::unwrap);
    lines.take_while(|line| !line.is_empty()).collect::<Vec<_>>().join("\n")
}

/// A SOCKS proxy in ALL_PROXY was passed by, and the proxy in HTTPS_PROXY with it.
#[test]
fn the_proxy_of_the_environment_is_used_or_refused() {
    let home = Home::new("pull-proxy");
    let import = ["model", "import", "hf:acme/tiny", "--endpoint", "http://hub.invalid"];
    let mut command = home.command(&import);
    command.env("ALL_PROXY", "socks5://127.0.0.1:9").env("HF_TOKEN", "secret");
    let refused = Finished::new(command.output().unwrap()).expect(2).stderr;
    assert!(refused.contains("ALL_PROXY names a SOCKS proxy"), "{refused}");
    let mut open = home.command(&[&import[..], &["--send-token"]].concat());
    let refused = Finished::new(open.env("HF_TOKEN", "secret").output().unwrap()).expect(2).stderr;
    assert!(refused.contains("no token is sent to http://hub.invalid, which"), "{refused}");

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let proxy = std::thread::Builder::new().name("proxy".to_owned());
    let proxy = proxy.spawn(move || answer_as_proxy(&listener)).unwrap();
    let answered = Finished::new(command.env("HTTPS_PROXY", address).output().unwrap()).expect(1);
    assert!(answered.stderr.contains("answered 404"), "{}", answered.stderr);
    let [tunnel, request] = proxy.join().unwrap();
    assert!(tunnel.starts_with("CONNECT hub.invalid:80 "), "{tunnel}");
    assert!(request.starts_with("GET /api/models/acme/tiny/"), "{request}");
    assert!(!tunnel.contains("secret") && !request.contains("secret"), "{request}");
}
