//! A tiny random model behind a real server.

use std::net::SocketAddr;
use std::sync::Arc;

use engine::{Engine, EngineHandle, EngineLimits};
use kernels::{Compute, Family};
use model::{Decoder, ModelConfig, Parameters};
use serde_json::{Value, json};
use server::{LoadedModel, ModelRegistry, RunningServer, SamplingDefaults, ServerConfig};
use tensor::{DType, Device, Passes};
use tokenizer::{BpeTrainer, ChatTemplate, TrainOptions};

/// A running server and the engine of its model `tiny`.
pub(crate) struct Fixture {
    pub(crate) server: RunningServer,
    pub(crate) models: ModelRegistry,
    pub(crate) engine: EngineHandle,
}

impl Fixture {
    pub(crate) fn address(&self) -> SocketAddr {
        self.server.address()
    }
}

/// A model that babbles, and its tokenizer.
pub(crate) fn model(context_len: usize, limits: EngineLimits) -> LoadedModel {
    let mut trainer = BpeTrainer::new(TrainOptions { vocab_size: 280, ..TrainOptions::default() });
    trainer.feed(
        "la galerne est un vent de la mer et le vent de la terre est un autre vent, dit la mer",
    );
    let tokenizer = Arc::new(trainer.train().unwrap());
    let config = config(tokenizer.vocab_size(), context_len);
    let mut parameters = Parameters::random(&config, 4);
    for tensor in parameters.iter_mut() {
        for value in tensor.f32_mut() {
            *value *= 3.0;
        }
    }
    let device = Device::Cpu(Compute::forced(Family::Reference, 1).unwrap());
    let mut decoder = Decoder::zeroed(&device, &config, DType::F32, Passes::Forward);
    decoder.pack(&device, &parameters);
    LoadedModel {
        engine: Engine::start(Arc::new(decoder), device, limits).unwrap(),
        adapter: None,
        eos_ids: vec![tokenizer.eos_id()],
        tokenizer,
        template: Some(ChatTemplate::default()),
        created: 1_700_000_000,
        defaults: SamplingDefaults::default(),
    }
}

fn config(vocab_size: usize, context_len: usize) -> ModelConfig {
    let mut config = ModelConfig::example();
    (config.vocab_size, config.context_len) = (vocab_size, context_len);
    ModelConfig::new(config).unwrap()
}

/// The shape of a model that [`model`] made.
pub(crate) fn model_config(model: &LoadedModel) -> ModelConfig {
    config(model.engine.vocab_size(), model.engine.context_len())
}

/// A server with the given settings and the model `tiny`.
pub(crate) fn start_with(
    config: ServerConfig,
    context_len: usize,
    limits: EngineLimits,
) -> Fixture {
    let models = ModelRegistry::new();
    let tiny = model(context_len, limits);
    let engine = tiny.engine.clone();
    models.add("tiny", tiny).unwrap();
    let server = server::bind(config).unwrap().start(models.clone()).unwrap();
    Fixture { server, models, engine }
}

/// A server with a context of 200 tokens.
pub(crate) fn start() -> Fixture {
    start_with(ServerConfig::on_port(0), 200, EngineLimits::default())
}

/// A server whose model would go on for many minutes: what ends before was ended.
pub(crate) fn start_endless(config: ServerConfig, limits: EngineLimits) -> Fixture {
    start_with(config, 60_000, limits)
}

/// A chat request with a fixed seed and the given further fields.
pub(crate) fn chat(more: &Value) -> Value {
    let mut body = json!({
        "model": "tiny", "seed": 5, "messages": [{"role": "user", "content": "le vent de la mer"}],
    });
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

/// Waits until the engine works on so many requests and so many wait for it.
pub(crate) fn wait_for(engine: &EngineHandle, (n_running, n_waiting): (usize, usize)) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    let counts = || (engine.load().n_running, engine.load().n_waiting);
    while counts() != (n_running, n_waiting) {
        let load = engine.load();
        assert!(std::time::Instant::now() < deadline, "{load:?}, not {n_running} and {n_waiting}");
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
}
