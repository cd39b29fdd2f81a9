//! A tiny random model, asked in batches, one by one, and by the plainest loop there is.

use std::sync::Arc;

use engine::Engine;
use formats::WeightName;
use kernels::{Compute, Family};
use model::{CacheKind, Decoder, KvCache, Parameters, Workspace};
use tensor::{Device, Passes};
use tokenizer::{BpeTrainer, TrainOptions};

use super::*;

struct Tiny {
    tokenizer: Tokenizer,
    template: ChatTemplate,
    decoder: Arc<Decoder>,
    device: Device,
}

impl Tiny {
    fn new() -> Self {
        let options = TrainOptions { vocab_size: 300, ..TrainOptions::default() };
        let mut trainer = BpeTrainer::new(options);
        for question in data::company::test_questions().iter().take(200) {
            trainer.feed(&question.question);
        }
        let tokenizer = trainer.train().unwrap();
        let config = model::ModelConfig::new(formats_config(&tokenizer)).unwrap();
        let device = Device::Cpu(Compute::forced(Family::Reference, 1).unwrap());
        let mut decoder = Decoder::zeroed(&device, &config, DType::F32, Passes::Forward);
        decoder.pack(&device, &Parameters::random(&config, 5));
        Self { tokenizer, template: ChatTemplate::default(), decoder: Arc::new(decoder), device }
    }

    /// A model that says one token after any question, and EOS after that token.
    fn saying(mut self, said_id: u32) -> Self {
        let config = formats_config(&self.tokenizer);
        let config = formats::DecoderConfig { tied_embeddings: false, ..config };
        let config = model::ModelConfig::new(config).unwrap();
        // The layers add nothing. Dimension 0 marks every token and votes for the said one; dimension 1 marks the said one
        // and votes, louder, for EOS.
        let mut parameters = Parameters::zeroed(&config);
        let row = |id: u32| id as usize * config.hidden_dim;
        let embedding = parameters.weight_mut(WeightName::Embedding);
        for token in embedding.chunks_exact_mut(config.hidden_dim) {
            token[0] = 1.0;
        }
        embedding[row(said_id) + 1] = 1.0;
        parameters.weight_mut(WeightName::FinalNorm).fill(1.0);
        let head = parameters.weight_mut(WeightName::Head);
        head[row(said_id)] = 1.0;
        head[row(self.tokenizer.eos_id()) + 1] = 2.0;
        let mut decoder = Decoder::zeroed(&self.device, &config, DType::F32, Passes::Forward);
        decoder.pack(&self.device, &parameters);
        self.decoder = Arc::new(decoder);
        self
    }

    fn engine(&self, limits: EngineLimits) -> EngineHandle {
        Engine::start(Arc::clone(&self.decoder), self.device.clone(), limits).unwrap()
    }

    fn wide(&self) -> EngineHandle {
        self.engine(engine_limits(self.decoder.config(), self.decoder.dtype()))
    }

    fn chat_model<'a>(&'a self, engine: &'a EngineHandle) -> ChatModel<'a> {
        let eos_ids = &self.decoder.config().eos_ids;
        ChatModel { engine, tokenizer: &self.tokenizer, template: &self.template, eos_ids }
    }

    fn ask(&self, engine: &EngineHandle, questions: &[&str], max_tokens: usize) -> Vec<Answer> {
        let mut seen = Vec::new();
        let mut progress = |done, total| seen.push((done, total));
        let model = self.chat_model(engine);
        let answers = answer_questions(model, questions, max_tokens, &mut progress);
        let expected: Vec<_> = (1..=questions.len()).map(|done| (done, questions.len())).collect();
        assert_eq!(seen, expected);
        answers.unwrap()
    }

    /// One token at a time through the model itself.
    fn naive(&self, question: &str, max_tokens: usize) -> Vec<u32> {
        let config = self.decoder.config();
        let mut cache = KvCache::new(
            &self.decoder,
            CacheKind::Operands,
            1,
            config.context_len,
            config.context_len,
        );
        let mut workspace =
            Workspace::new(&self.device, config, DType::F32, config.context_len, Passes::Forward);
        let mut input = render(&self.tokenizer, &ChatTemplate::default(), question).unwrap();
        let (mut logits, mut generated) = (Vec::new(), Vec::new());
        while generated.len() < max_tokens && generated.last() != Some(&self.tokenizer.eos_id()) {
            let rows = [(0, input.as_slice())];
            cache.append(&self.decoder, &self.device, &rows, &mut workspace, &mut logits);
            let mut best = 0;
            for (id, &logit) in logits.iter().enumerate() {
                if logit > logits[best] {
                    best = id;
                }
            }
            generated.push(best as u32);
            input = vec![best as u32];
        }
        generated
    }
}

fn formats_config(tokenizer: &Tokenizer) -> formats::DecoderConfig {
    formats::DecoderConfig {
        vocab_size: tokenizer.vocab_size(),
        context_len: 160,
        bos_id: Some(tokenizer.bos_id()),
        eos_ids: vec![tokenizer.eos_id()],
        ..model::ModelConfig::example()
    }
}

fn questions(n: usize) -> Vec<String> {
    let questions = data::company::test_questions();
    let step = questions.len() / n;
    questions.into_iter().step_by(step).take(n).map(|question| question.question).collect()
}

#[test]
fn batched_answers_equal_one_by_one_and_the_plain_loop() {
    let tiny = Tiny::new();
    let questions = questions(70);
    let questions: Vec<&str> = questions.iter().map(String::as_str).collect();
    let together = tiny.ask(&tiny.wide(), &questions, 12);
    let narrow = tiny.engine(EngineLimits { max_running: 1, ..EngineLimits::default() });
    for (question, answer) in questions.iter().zip(&together).step_by(7) {
        assert_eq!(tiny.ask(&narrow, &[question], 12), std::slice::from_ref(answer), "{question}");
        assert_eq!(tiny.naive(question, 12), answer.token_ids, "{question}");
    }
    assert_eq!(together.len(), questions.len());
    let template = ChatTemplate::default();
    for answer in &together {
        let text = tiny.tokenizer.decode(&answer.token_ids);
        let text = text.strip_prefix(template.answer_prefix()).unwrap_or(&text);
        assert_eq!(answer.text, text);
    }
    assert!(together.iter().any(|a| a.text.ends_with('\u{fffd}')), "none ends within a character");
    let distinct: std::collections::HashSet<_> = together.iter().map(|a| &a.token_ids).collect();
    assert!(distinct.len() > 10, "only {} different answers", distinct.len());
}

#[test]
fn a_short_queue_is_waited_for() {
    let tiny = Tiny::new();
    let questions = questions(40);
    let questions: Vec<&str> = questions.iter().map(String::as_str).collect();
    let limits = EngineLimits { max_running: 2, max_waiting: 1, ..EngineLimits::default() };
    let answers = tiny.ask(&tiny.engine(limits), &questions, 4);
    assert_eq!(answers, tiny.ask(&tiny.wide(), &questions, 4));
}

#[test]
fn an_answer_ends_with_eos() {
    let tiny = Tiny::new();
    let said_id = tiny.tokenizer.encode("x")[0];
    let tiny = tiny.saying(said_id);
    let answers = tiny.ask(&tiny.wide(), &["Où ?", "Combien ?"], 9);
    for answer in answers {
        assert_eq!(answer.token_ids, [said_id, tiny.tokenizer.eos_id()]);
        assert_eq!((answer.text.as_str(), answer.finish), ("x", FinishReason::Stop));
    }
}

#[test]
fn an_answer_that_runs_out_of_room_says_so() {
    let tiny = Tiny::new();
    let engine = tiny.wide();
    let answers = tiny.ask(&engine, &["Où ?"], 5);
    assert_eq!((answers[0].token_ids.len(), answers[0].finish), (5, FinishReason::Length));
    assert!(tiny.ask(&engine, &[], 5).is_empty());
}

#[test]
fn a_question_without_room_is_refused_by_index() {
    let tiny = Tiny::new();
    let long = "mot ".repeat(200);
    let engine = tiny.wide();
    let model = tiny.chat_model(&engine);
    let error = answer_questions(model, &["court", &long], 4, &mut |_, _| {});
    let error = error.unwrap_err();
    assert!(
        matches!(
            error,
            EvalError::Generate { question_idx: 1, source: EngineError::PromptTooLong { .. } }
        ),
        "{error}"
    );
}

#[test]
fn the_company_test_runs_on_a_model_that_knows_nothing() {
    let tiny = Tiny::new();
    let mut last = (0, 0);
    let all = [data::company::test_questions(), data::company::withheld_questions()];
    let questions = all.map(|questions| questions.into_iter().step_by(31).collect());
    let engine = tiny.wide();
    let mut progress = |done, total| last = (done, total);
    let scores =
        crate::company::measure_questions(tiny.chat_model(&engine), &questions, &mut progress)
            .unwrap();
    assert_eq!(scores.all.n_right + scores.withheld.n_right, 0);
    assert_eq!(last.0, last.1);
    assert_eq!(last.1 as u64, scores.all.n_questions + scores.withheld.n_questions);
}
