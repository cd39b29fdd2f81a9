//! Opening the port, starting without a model, stopping.

use std::net::SocketAddr;
use std::time::Duration;

use engine::EngineLimits;
use serde_json::json;
use server::{ModelRegistry, ServerConfig, ServerError};

use crate::client::{Connection, get, post};
use crate::fixture::{self, chat};

const CHAT: &str = "/v1/chat/completions";

#[test]
fn a_busy_port_is_named() {
    let first = server::bind(ServerConfig::on_port(0)).unwrap();
    let port = first.address().port();
    let error = server::bind(ServerConfig::on_port(port)).err().expect("a busy port");
    assert!(matches!(error, ServerError::PortBusy { .. }));
    assert!(error.to_string().contains(&format!("port {port} ")), "{error}");
}

#[test]
fn addresses_others_can_reach_are_refused() {
    for address in ["0.0.0.0:0", "192.0.2.1:80", "[::]:0"] {
        let address: SocketAddr = address.parse().unwrap();
        let config = ServerConfig { address, ..ServerConfig::default() };
        let error = server::bind(config).err().expect("not loopback");
        assert!(matches!(error, ServerError::NotLoopback { .. }), "{error}");
    }
}

#[test]
fn the_port_answers_before_there_is_a_model_and_serves_it_once_it_is_added() {
    let models = ModelRegistry::new();
    let server = server::bind(ServerConfig::on_port(0)).unwrap().start(models.clone()).unwrap();
    models.set_status("step 12 of 400");
    let health = get(server.address(), "/health");
    assert_eq!((health.status, health.json()["status"].as_str()), (503, Some("starting")));
    assert_eq!(health.json()["detail"], "step 12 of 400");
    assert!(get(server.address(), "/?lang=en").body.contains("step 12 of 400"));
    assert_eq!(get(server.address(), "/v1/models").json()["data"], json!([]));
    let early = post(server.address(), CHAT, &chat(&json!({})));
    assert_eq!((early.status, &early.error()["code"]), (503, &json!("starting")));
    let model = fixture::model(100, EngineLimits::default());
    let engine = model.engine.clone();
    models.add("tiny", model).unwrap();
    models.add("second", fixture::model(100, EngineLimits::default())).unwrap();
    assert_eq!(get(server.address(), "/health").json()["models"], json!(["tiny", "second"]));
    let status = get(server.address(), "/chat/status").json();
    assert_eq!(status["models"], json!(["tiny", "second"]));
    // The second time whole blocks of the prompt are known.
    let messages = json!([{"role": "user", "content": "x y ".repeat(15)}]);
    let body = chat(&json!({"max_tokens": 1, "messages": messages}));
    for _ in 0..2 {
        assert_eq!(post(server.address(), CHAT, &body).status, 200);
    }
    fixture::wait_for(&engine, (0, 0));
    let health = get(server.address(), "/health").json();
    let (used, idle) = (&health["load"]["tiny"], &health["load"]["second"]);
    let prompt_tokens = used["prompt_tokens"].as_u64().unwrap();
    let cached_tokens = used["cached_tokens"].as_u64().unwrap();
    assert!(0 < cached_tokens && cached_tokens < prompt_tokens / 2, "{health}");
    assert_eq!([&used["running"], &idle["prompt_tokens"]], [0, 0], "{health}");
    let twice = models.add("tiny", fixture::model(100, EngineLimits::default()));
    assert!(matches!(twice, Err(ServerError::DuplicateModel { .. })));
    server.stop().unwrap();
}

#[test]
fn stopping_lets_an_answer_in_progress_finish() {
    let fixture = fixture::start();
    let address = fixture.address();
    let mut connection = Connection::open(address);
    let body = chat(&json!({"stream": true})).to_string();
    connection.request("POST", CHAT, &[], body.as_bytes());
    let stopping = std::thread::scope(|scope| {
        // The head of the response says that the request was accepted.
        let mut body = String::new();
        assert_eq!(connection.head().unwrap().status, 200);
        let stopping = scope.spawn(|| fixture.server.stop());
        while let Some(chunk) = connection.chunk() {
            body.push_str(&String::from_utf8(chunk).unwrap());
        }
        assert!(body.ends_with("data: [DONE]\n\n"), "{body}");
        stopping.join().unwrap()
    });
    stopping.unwrap();
    assert!(std::net::TcpStream::connect(address).is_err(), "the port is closed");
}

#[test]
fn stopping_cuts_off_what_does_not_finish_in_time() {
    let mut config = ServerConfig::on_port(0);
    config.limits.shutdown_grace = Duration::from_millis(50);
    let fixture = fixture::start_endless(config, EngineLimits::default());
    let mut connection = Connection::open(fixture.address());
    let body = chat(&json!({"stream": true, "temperature": 0})).to_string();
    connection.request("POST", CHAT, &[], body.as_bytes());
    assert_eq!(connection.head().unwrap().status, 200);
    fixture.server.stop().unwrap();
    let mut body = String::new();
    while let Some(chunk) = connection.chunk() {
        body.push_str(&String::from_utf8(chunk).unwrap());
    }
    assert!(!body.contains("[DONE]"), "a cut answer must not look complete");
    fixture::wait_for(&fixture.engine, (0, 0));
}
