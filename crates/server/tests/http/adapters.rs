//! Models that come and go, and adapters beside them.

use std::sync::Arc;

use engine::{EngineLimits, LoadedAdapter};
use kernels::{Compute, Family};
use model::ModelConfig;
use serde_json::{Value, json};
use server::{LoadedModel, ModelRegistry, ServerConfig};
use tensor::{DType, Device};

use crate::client::{get, post};
use crate::fixture::{chat, model, model_config, wait_for};

const CHAT: &str = "/v1/chat/completions";

pub(crate) fn adapter(config: &ModelConfig, seed: u64) -> Arc<LoadedAdapter> {
    let device = Device::Cpu(Compute::forced(Family::Reference, 1).unwrap());
    Arc::new(LoadedAdapter::random(&device, config, DType::F32, 2, seed))
}

/// The same model with an adapter, in the same engine.
pub(crate) fn with_adapter(base: &LoadedModel, adapter: Arc<LoadedAdapter>) -> LoadedModel {
    LoadedModel {
        engine: base.engine.clone(),
        adapter: Some(adapter),
        tokenizer: Arc::clone(&base.tokenizer),
        template: base.template.clone(),
        eos_ids: base.eos_ids.clone(),
        created: base.created,
        defaults: base.defaults,
    }
}

#[test]
fn adapters_answer_under_their_own_names_at_the_same_time() {
    let (models, base) = (ModelRegistry::new(), model(200, EngineLimits::default()));
    let config = model_config(&base);
    for (name, seed) in [("one", 1), ("other", 2)] {
        models.add(name, with_adapter(&base, adapter(&config, seed))).unwrap();
    }
    models.add("tiny", base).unwrap();
    let server = server::bind(ServerConfig::on_port(0)).unwrap().start(models).unwrap();
    let address = server.address();
    let ask = move |name: &str| {
        let more = json!({"model": name, "max_tokens": 40, "temperature": 0});
        let body = post(address, CHAT, &chat(&more)).json();
        assert_eq!(body["model"], name);
        body["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
    };
    let names = ["tiny", "one", "other"];
    let alone = names.map(ask);
    assert!(alone[0] != alone[1] && alone[1] != alone[2] && alone[0] != alone[2], "{alone:?}");
    std::thread::scope(|scope| {
        let together: Vec<_> = (0..9).map(|i| scope.spawn(move || ask(names[i % 3]))).collect();
        for (i, answer) in together.into_iter().enumerate() {
            assert_eq!(answer.join().unwrap(), alone[i % 3]);
        }
    });
    let list = get(address, "/v1/models").json();
    let listed: Vec<&Value> =
        list["data"].as_array().unwrap().iter().map(|card| &card["id"]).collect();
    assert_eq!(listed, ["one", "other", "tiny"]);
}

#[test]
fn an_answer_goes_on_though_its_model_is_removed() {
    let models = ModelRegistry::new();
    let tiny = model(2000, EngineLimits::default());
    let engine = tiny.engine.clone();
    models.add("tiny", tiny).unwrap();
    let server = server::bind(ServerConfig::on_port(0)).unwrap().start(models.clone()).unwrap();
    let address = server.address();
    std::thread::scope(|scope| {
        let more = json!({"max_tokens": 1500, "temperature": 0, "logit_bias": {"2": -100}});
        let answer = scope.spawn(move || post(address, CHAT, &chat(&more)).json());
        wait_for(&engine, (1, 0));
        drop(engine);
        assert!(models.remove("tiny"));
        let body = answer.join().unwrap();
        assert_eq!(body["usage"]["completion_tokens"], 1500, "{body}");
    });
}

#[test]
fn a_model_that_is_removed_answers_no_longer_and_its_memory_is_free() {
    let (models, base) = (ModelRegistry::new(), model(200, EngineLimits::default()));
    let adapter = adapter(&model_config(&base), 1);
    let (weak, tokenizer) = (Arc::downgrade(&adapter), Arc::downgrade(&base.tokenizer));
    models.add("one", with_adapter(&base, adapter)).unwrap();
    models.add("tiny", base).unwrap();
    let server = server::bind(ServerConfig::on_port(0)).unwrap().start(models.clone()).unwrap();
    let ask = |name: &str| {
        let more = json!({"model": name, "max_tokens": 4});
        post(server.address(), CHAT, &chat(&more)).status
    };
    assert_eq!((ask("one"), ask("tiny")), (200, 200));
    assert!(models.remove("one"));
    assert!(!models.remove("one"));
    assert_eq!((ask("one"), ask("tiny")), (404, 200));
    assert!(weak.upgrade().is_none(), "the adapter is freed");
    assert!(models.remove("tiny"));
    // The engine has ended: with it go the weights and the cache.
    assert!(tokenizer.upgrade().is_none(), "the model is freed");
    assert_eq!(ask("tiny"), 503);
    models.add("again", model(200, EngineLimits::default())).unwrap();
    assert_eq!(ask("again"), 200);
}
