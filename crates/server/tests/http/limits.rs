//! What clients cannot do: too much, too slowly, from elsewhere, or for nobody.

use std::time::{Duration, Instant};

use engine::EngineLimits;
use serde_json::json;
use server::{ServerConfig, ServerLimits};
use tokenizer::{ChatTemplate, JinjaTemplate};

use crate::client::{Connection, get, get_with, post};
use crate::fixture::{self, chat, wait_for};

const CHAT: &str = "/v1/chat/completions";

fn limited(change: impl FnOnce(&mut ServerLimits)) -> ServerConfig {
    let mut config = ServerConfig::on_port(0);
    change(&mut config.limits);
    config
}

#[test]
fn other_hosts_and_origins_are_refused_on_every_route() {
    let fixture = fixture::start();
    for path in ["/", "/health", "/models", "/v1/models", "/assets/chat.js", "/nothing"] {
        let foreign = get_with(fixture.address(), path, &[("Host", "evil.example")]);
        assert_eq!((foreign.status, &foreign.error()["code"]), (403, &json!("foreign_host")));
        let foreign = get_with(fixture.address(), path, &[("Origin", "http://evil.example")]);
        assert_eq!((foreign.status, &foreign.error()["code"]), (403, &json!("foreign_origin")));
        let own = get_with(fixture.address(), path, &[("Origin", "http://localhost")]);
        assert_ne!(own.status, 403, "{path}");
    }
    for path in [
        "/v1/chat/completions",
        "/v1/completions",
        "/chat/stream",
        "/models/load",
        "/models/unload",
    ] {
        let mut connection = Connection::open(fixture.address());
        connection.request(
            "POST",
            path,
            &[("Origin", "http://evil.example")],
            br#"{"model": "tiny"}"#,
        );
        let foreign = connection.response();
        assert_eq!((foreign.status, &foreign.error()["code"]), (403, &json!("foreign_origin")));
    }
}

#[test]
fn what_pages_of_other_sites_embed_is_refused_and_links_to_the_page_are_not() {
    let fixture = fixture::start();
    let status = |path: &str, site: &str, mode: &str| {
        let headers = [("Sec-Fetch-Site", site), ("Sec-Fetch-Mode", mode)];
        get_with(fixture.address(), path, &headers).status
    };
    assert_eq!(status("/v1/models", "cross-site", "no-cors"), 403);
    assert_eq!(status("/", "same-site", "no-cors"), 403);
    assert_eq!(status("/", "cross-site", "navigate"), 200);
    assert_eq!(status("/v1/models", "same-origin", "cors"), 200);
}

#[test]
fn what_is_not_a_route_does_not_exist() {
    let fixture = fixture::start();
    for path in ["/v1", "/v1/engines", "/assets/../Cargo.toml", "/assets/none.js", "/panic"] {
        let response = get(fixture.address(), path);
        assert_eq!(
            (response.status, &response.error()["code"]),
            (404, &json!("not_found")),
            "{path}"
        );
    }
    let response = get(fixture.address(), CHAT);
    assert_eq!((response.status, response.header("allow")), (405, Some("POST")));
    assert_eq!(response.error()["code"], "method_not_allowed");
}

#[test]
fn a_body_over_the_limit_is_refused_with_and_without_a_length() {
    let config = limited(|limits| limits.max_body_bytes = 1000);
    let fixture = fixture::start_with(config, 200, EngineLimits::default());
    let long = json!([{"role": "user", "content": "x".repeat(1000)}]);
    let response = post(fixture.address(), CHAT, &chat(&json!({"messages": long})));
    assert_eq!((response.status, &response.error()["code"]), (413, &json!("body_too_large")));
    let mut connection = Connection::open(fixture.address());
    let head =
        format!("POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n");
    connection.send(head.as_bytes());
    connection.send(format!("3e9\r\n{}\r\n", "x".repeat(1001)).as_bytes());
    assert_eq!(connection.response().status, 413);
}

#[test]
fn headers_and_bodies_that_do_not_arrive_end_the_request() {
    let config = limited(|limits| {
        limits.header_timeout = Duration::from_millis(100);
        limits.body_timeout = Duration::from_millis(100);
    });
    let fixture = fixture::start_with(config, 200, EngineLimits::default());
    let mut slow_head = Connection::open(fixture.address());
    slow_head.send(b"GET /health HTTP/1.1\r\nHost: local");
    assert!(slow_head.is_ended());
    let mut slow_body = Connection::open(fixture.address());
    let head = format!("POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n{{");
    slow_body.send(head.as_bytes());
    assert_eq!(slow_body.response().status, 408);
}

#[test]
fn a_head_over_the_limit_is_refused() {
    let fixture = fixture::start();
    let mut connection = Connection::open(fixture.address());
    let head =
        format!("GET /health HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n", "x".repeat(70_000));
    connection.send(head.as_bytes());
    assert!(connection.head().is_none_or(|response| response.status == 431));
    assert_eq!(get(fixture.address(), "/health").status, 200);
}

#[test]
fn a_slow_template_keeps_no_other_model_waiting() {
    let fixture = fixture::start();
    let mut slow = fixture::model(200, EngineLimits::default());
    let source = "{% set s = ['a' * 8000000] %}{% set t = ['a' * 8000000] %}\
                  {% for i in range(90000) %}{{ s == t }}{% endfor %}";
    slow.template = Some(ChatTemplate::Jinja(JinjaTemplate::new(source).unwrap().into()));
    fixture.models.add("slow", slow).unwrap();
    let body = chat(&json!({"model": "slow"})).to_string();
    let open = || {
        let mut connection = Connection::open(fixture.address());
        connection.request("POST", CHAT, &[], body.as_bytes());
        connection
    };
    // More than are rendered at a time. They are there before the next request.
    let slow: Vec<Connection> = (0..4).map(|_| open()).collect();
    std::thread::sleep(Duration::from_millis(300));
    let start = Instant::now();
    let answer = post(fixture.address(), CHAT, &chat(&json!({"max_tokens": 1})));
    assert_eq!(answer.status, 200);
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    drop(slow);
}

#[test]
fn a_client_that_goes_away_ends_its_streamed_answer() {
    let fixture = fixture::start_endless(ServerConfig::on_port(0), EngineLimits::default());
    for path in [CHAT, "/chat/stream"] {
        let mut connection = Connection::open(fixture.address());
        let body = chat(&json!({"stream": true, "temperature": 0})).to_string();
        connection.request("POST", path, &[], body.as_bytes());
        assert_eq!(connection.head().unwrap().status, 200);
        connection.chunk().unwrap();
        wait_for(&fixture.engine, (1, 0));
        drop(connection);
        wait_for(&fixture.engine, (0, 0));
    }
}

#[test]
fn a_client_that_goes_away_while_waiting_leaves_the_queue() {
    let limits = EngineLimits { max_running: 1, ..EngineLimits::default() };
    let fixture = fixture::start_endless(ServerConfig::on_port(0), limits);
    let body = chat(&json!({"stream": true, "temperature": 0})).to_string();
    let open = || {
        let mut connection = Connection::open(fixture.address());
        connection.request("POST", CHAT, &[], body.as_bytes());
        assert_eq!(connection.head().unwrap().status, 200);
        connection
    };
    let running = open();
    wait_for(&fixture.engine, (1, 0));
    let waiting = open();
    wait_for(&fixture.engine, (1, 1));
    drop(waiting);
    wait_for(&fixture.engine, (1, 0));
    drop(running);
    wait_for(&fixture.engine, (0, 0));
}

#[test]
fn a_client_that_goes_away_ends_its_whole_answer() {
    let fixture = fixture::start_endless(ServerConfig::on_port(0), EngineLimits::default());
    let mut connection = Connection::open(fixture.address());
    let body = chat(&json!({"temperature": 0})).to_string();
    connection.request("POST", CHAT, &[], body.as_bytes());
    wait_for(&fixture.engine, (1, 0));
    drop(connection);
    wait_for(&fixture.engine, (0, 0));
}

#[test]
fn a_client_that_goes_away_ends_its_answer_whatever_it_sent_behind_the_request() {
    let fixture = fixture::start_endless(ServerConfig::on_port(0), EngineLimits::default());
    for more in ["G", "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"] {
        let mut connection = Connection::open(fixture.address());
        let body = chat(&json!({"temperature": 0})).to_string() + more;
        let length = (body.len() - more.len()).to_string();
        let head = format!(
            "POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        connection.send(head.as_bytes());
        wait_for(&fixture.engine, (1, 0));
        drop(connection);
        wait_for(&fixture.engine, (0, 0));
    }
}

#[test]
fn requests_sent_together_are_answered_in_order() {
    let fixture = fixture::start();
    let mut connection = Connection::open(fixture.address());
    let health = "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n";
    connection.send([health, health].concat().as_bytes());
    for _ in 0..2 {
        assert_eq!(connection.response().status, 200);
    }
}

#[test]
fn a_full_queue_is_an_answer_that_says_to_come_back() {
    let limits = EngineLimits { max_running: 1, max_waiting: 1, ..EngineLimits::default() };
    let fixture = fixture::start_endless(ServerConfig::on_port(0), limits);
    let body = chat(&json!({"stream": true, "temperature": 0})).to_string();
    let mut connections = Vec::new();
    for n_waiting in 0..2 {
        let mut connection = Connection::open(fixture.address());
        connection.request("POST", CHAT, &[], body.as_bytes());
        assert_eq!(connection.head().unwrap().status, 200);
        wait_for(&fixture.engine, (1, n_waiting));
        connections.push(connection);
    }
    let refused = post(fixture.address(), CHAT, &chat(&json!({})));
    assert_eq!((refused.status, &refused.error()["code"]), (503, &json!("queue_full")));
    assert!(refused.header("retry-after").is_some());
    drop(connections);
    wait_for(&fixture.engine, (0, 0));
    assert_eq!(post(fixture.address(), CHAT, &chat(&json!({"max_tokens": 1}))).status, 200);
}

#[test]
fn connections_over_the_limit_wait_for_a_place() {
    let config = limited(|limits| limits.max_connections = 1);
    let fixture = fixture::start_with(config, 200, EngineLimits::default());
    let mut first = Connection::open(fixture.address());
    first.request("GET", "/health", &[], b"");
    assert_eq!(first.response().status, 200);
    let mut second = Connection::open(fixture.address());
    second.request("GET", "/health", &[], b"");
    first.request("GET", "/health", &[], b"");
    assert_eq!(first.response().status, 200);
    drop(first);
    assert_eq!(second.response().status, 200);
}
