//! Models that clients load and unload.

use std::net::SocketAddr;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, Weak};

use engine::EngineLimits;
use serde_json::{Value, json};
use server::{LoadError, LoadedModel, ModelRegistry, ModelSource, RunningServer, ServerConfig};
use tokenizer::Tokenizer;

use crate::adapters::{adapter, with_adapter};
use crate::client::{Connection, Response, get, post};
use crate::fixture::{chat, model, model_config, wait_for};

const CHAT: &str = "/v1/chat/completions";

/// Has `tiny` with the adapter `changed`, `other`, which it loads when it is told to, and models that it cannot load.
struct Shelf {
    /// Each load of `other` says that it began, and waits.
    began: SyncSender<()>,
    go_on: Mutex<Receiver<()>>,
    /// Ends with the last model that was loaded.
    tokenizer: Mutex<Weak<Tokenizer>>,
}

impl ModelSource for Shelf {
    fn names(&self) -> Vec<String> {
        ["tiny", "other", "large", "broken", "clash", "panics"].map(str::to_owned).to_vec()
    }

    fn load(&self, name: &str) -> Result<Vec<(String, LoadedModel)>, LoadError> {
        match name {
            "large" => {
                let detail = "model `large` needs 2 TiB of memory".to_owned();
                return Err(LoadError::NoMemory { detail });
            }
            "broken" => return Err(LoadError::Failed),
            "panics" => panic!("on purpose"),
            "other" => {
                self.began.send(()).unwrap();
                self.go_on.lock().unwrap().recv().unwrap();
            }
            _ => {}
        }
        let base = model(2000, EngineLimits::default());
        *self.tokenizer.lock().unwrap() = Arc::downgrade(&base.tokenizer);
        let changed = with_adapter(&base, adapter(&model_config(&base), 1));
        let mut loaded = vec![(name.to_owned(), base)];
        if name != "other" {
            loaded.push(("changed".to_owned(), changed));
        }
        Ok(loaded)
    }
}

struct Fixture {
    server: RunningServer,
    models: ModelRegistry,
    shelf: Arc<Shelf>,
    began: Receiver<()>,
    go_on: SyncSender<()>,
}

impl Fixture {
    fn start() -> Self {
        let ((for_shelf, began), (go_on, told)) = (sync_channel(1), sync_channel(1));
        let (go_on_told, tokenizer) = (Mutex::new(told), Mutex::new(Weak::new()));
        let shelf = Arc::new(Shelf { began: for_shelf, go_on: go_on_told, tokenizer });
        let models = ModelRegistry::new();
        let server = server::bind(ServerConfig::on_port(0)).unwrap().start(models.clone()).unwrap();
        Self { server, models, shelf, began, go_on }
    }

    fn address(&self) -> SocketAddr {
        self.server.address()
    }

    fn states(&self) -> Value {
        let body = get(self.address(), "/models").json();
        let of = |model: &Value| {
            (model["id"].as_str().unwrap().to_owned(), model["status"]["value"].clone())
        };
        body["data"].as_array().unwrap().iter().map(of).collect::<serde_json::Map<_, _>>().into()
    }
}

fn change(address: SocketAddr, what: &str, name: &str) -> Response {
    post(address, &format!("/models/{what}"), &json!({"model": name}))
}

/// The status of an answer and the code of its error.
fn refusal(response: &Response) -> (u16, String) {
    (response.status, response.error()["code"].as_str().unwrap().to_owned())
}

#[test]
fn models_are_loaded_and_unloaded_with_their_adapters() {
    let fixture = Fixture::start();
    let address = fixture.address();
    assert_eq!(refusal(&change(address, "load", "tiny")), (503, "starting".to_owned()));
    assert_eq!(refusal(&change(address, "unload", "tiny")), (503, "starting".to_owned()));
    assert_eq!(fixture.states(), json!({}));
    fixture.models.load_from(fixture.shelf.clone());
    let health = get(address, "/health");
    assert_eq!((health.status, &health.json()["status"]), (200, &json!("ok")));
    assert_eq!(get(address, "/chat/status").json()["status"], "idle");
    assert!(get(address, "/?lang=en").body.contains("<h1>No model is loaded</h1>"));
    let ask = |name: &str| post(address, CHAT, &chat(&json!({"model": name, "max_tokens": 4})));
    assert_eq!(refusal(&ask("tiny")), (404, "model_not_found".to_owned()));
    for _ in 0..3 {
        let loaded = change(address, "load", "tiny");
        assert_eq!(loaded.json(), json!({"success": true, "models": ["tiny", "changed"]}));
        assert_eq!((ask("tiny").status, ask("changed").status), (200, 200));
        let states = fixture.states();
        let states = [&states["tiny"], &states["changed"], &states["other"]];
        assert_eq!(states, ["loaded", "loaded", "unloaded"]);
        assert_eq!(refusal(&change(address, "load", "tiny")), (409, "already_loaded".to_owned()));
        // By the name of either: the memory is that of both.
        let unloaded = change(address, "unload", "changed");
        assert_eq!(unloaded.json(), json!({"success": true, "models": ["tiny", "changed"]}));
        let tokenizer = fixture.shelf.tokenizer.lock().unwrap();
        assert!(tokenizer.upgrade().is_none(), "it is free when the answer comes");
        assert_eq!(refusal(&ask("tiny")), (404, "model_not_found".to_owned()));
        assert_eq!(fixture.states()["tiny"], "unloaded");
    }
    let again = change(address, "unload", "tiny");
    assert_eq!(refusal(&again), (409, "not_loaded".to_owned()));
    assert_eq!(again.error()["param"], "model");
}

#[test]
fn what_cannot_be_loaded_changes_nothing() {
    let fixture = Fixture::start();
    fixture.models.load_from(fixture.shelf.clone());
    let address = fixture.address();
    assert_eq!(change(address, "load", "tiny").status, 200);
    for (name, expected) in [
        ("large", (507, "no_memory")),
        ("broken", (500, "load_failed")),
        // Its adapter has a name that is taken: neither is served.
        ("clash", (409, "name_taken")),
        ("panics", (500, "internal_error")),
        ("nothing", (404, "model_not_found")),
    ] {
        let (status, code) = expected;
        let refused = change(address, "load", name);
        assert_eq!(refusal(&refused), (status, code.to_owned()), "{name}");
        let list = get(address, "/v1/models").json();
        assert_eq!(list["data"].as_array().unwrap().len(), 2, "{name}: {list}");
    }
    assert!(change(address, "load", "large").body.contains("needs 2 TiB"));
    let unknown = change(address, "load", "nothing").error()["message"].to_string();
    assert!(unknown.contains("`other`"), "{unknown}");
    for body in [json!([]), json!({}), json!({"model": 3}), json!({"model": "x".repeat(10_000)})] {
        assert_eq!(post(address, "/models/load", &body).status, 400, "{body}");
    }
    let ignored = post(address, "/models/unload", &json!({"model": "tiny", "extra": 1}));
    assert_eq!(ignored.header("x-galerne-ignored-fields"), Some("extra"));
}

#[test]
fn one_model_is_loaded_at_a_time_and_another_answers_meanwhile() {
    let fixture = Fixture::start();
    fixture.models.load_from(fixture.shelf.clone());
    let address = fixture.address();
    assert_eq!(change(address, "load", "tiny").status, 200);
    std::thread::scope(|scope| {
        let loading = scope.spawn(move || change(address, "load", "other"));
        fixture.began.recv().unwrap();
        assert_eq!(fixture.states()["other"], "loading");
        let early = post(address, CHAT, &chat(&json!({"model": "other"})));
        assert_eq!(refusal(&early), (503, "loading".to_owned()));
        assert_eq!(
            refusal(&change(address, "load", "broken")),
            (409, "loading_another".to_owned())
        );
        assert_eq!(refusal(&change(address, "unload", "other")), (409, "not_loaded".to_owned()));
        let answer = post(address, CHAT, &chat(&json!({"max_tokens": 4})));
        assert_eq!(answer.status, 200);
        fixture.go_on.send(()).unwrap();
        assert_eq!(loading.join().unwrap().json()["models"], json!(["other"]));
    });
    assert_eq!(fixture.states()["other"], "loaded");
}

#[test]
fn unloading_waits_for_answers_in_progress() {
    let fixture = Fixture::start();
    fixture.models.load_from(fixture.shelf.clone());
    let address = fixture.address();
    let tiny = model(60_000, EngineLimits::default());
    let engine = tiny.engine.clone();
    fixture.models.add("tiny", tiny).unwrap();
    // An answer that would take many minutes.
    let mut connection = Connection::open(address);
    let more = json!({"stream": true, "temperature": 0, "logit_bias": {"2": -100}});
    connection.request("POST", CHAT, &[], chat(&more).to_string().as_bytes());
    assert_eq!(connection.head().unwrap().status, 200);
    wait_for(&engine, (1, 0));
    let end = engine.end();
    drop(engine);
    std::thread::scope(|scope| {
        let unloading = scope.spawn(move || change(address, "unload", "tiny"));
        while fixture.states()["tiny"] != "unloading" {
            assert!(!unloading.is_finished(), "an answer is in progress");
        }
        assert_eq!(refusal(&change(address, "load", "tiny")), (409, "unloading".to_owned()));
        assert_eq!(refusal(&change(address, "unload", "tiny")), (409, "unloading".to_owned()));
        assert!(!end.is_past() && !unloading.is_finished());
        drop(connection);
        assert_eq!(unloading.join().unwrap().status, 200);
        assert!(end.is_past());
    });
    assert_eq!(change(address, "load", "tiny").status, 200);
}
