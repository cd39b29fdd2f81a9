//! A report of made-up figures, to test its forms and to look at the page.

use std::collections::BTreeMap;

use data::company::{Question, test_questions, withheld_questions};
use data::sheet::{DataSheet, LanguageSheet, Origin};
use engine::FinishReason;
use eval::ask::Answer;
use eval::company::{CompanyScores, score};
use eval::report::{FORMAT_VERSION, LanguageBits, Machine, ModelReport, Report, TimedStage};
use eval::{Curve, CurvePoint};
use testkit::random::Rng;

/// A report of three models, the last of which knows most of the company's facts.
pub(crate) fn report() -> Report {
    let mut rng = Rng::new(3);
    let stages = [("corpus", 21.4), ("tokenizer", 2.3), ("pre-training", 402.7)];
    let more = [("chat", 51.0), ("company", 64.2), ("measuring", 18.9), ("export", 1.2)];
    let stage = |(name, seconds): (&str, f64)| TimedStage { name: name.to_owned(), seconds };
    Report {
        format_version: FORMAT_VERSION,
        name: "quickstart-1".to_owned(),
        date: "2026-11-21 14:05 UTC".to_owned(),
        program: "galerne 0.1.0".to_owned(),
        machine: Machine {
            processor: "Made-up processor at 2.4 GHz".to_owned(),
            n_threads: 2,
            kernel_family: "amx".to_owned(),
            memory_bytes: 24 << 30,
        },
        seed: 1,
        seconds: 561.7,
        stages: stages.into_iter().chain(more).map(stage).collect(),
        parameters: 4_915_200,
        pretraining_tokens: 31_457_280,
        tokens_per_s: 78_120.0,
        models: vec![
            model("base", [1.214, 1.302, 1.871], &company(&mut rng, 0.0)),
            model("chat", [1.231, 1.318, 1.902], &company(&mut rng, 0.02)),
            model("specialised", [1.402, 1.455, 2.133], &company(&mut rng, 0.87)),
        ],
        curves: vec![
            curve(&mut rng, "pre-training", 960, 9.0, 2.3),
            curve(&mut rng, "chat", 180, 3.1, 1.4),
            curve(&mut rng, "company", 240, 4.2, 0.2),
        ],
        data: sheet(),
    }
}

fn model(name: &str, bits: [f64; 3], company: &CompanyScores) -> ModelReport {
    let bits = ["fr", "en", "de"].into_iter().zip(bits);
    ModelReport {
        name: name.to_owned(),
        directory: format!("/home/anna/.galerne/models/quickstart-1-{name}"),
        bits_per_byte: bits
            .map(|(language, bits_per_byte)| LanguageBits {
                language: language.to_owned(),
                bits_per_byte,
                n_bytes: 210_000,
            })
            .collect(),
        company: Some(company.clone()),
    }
}

/// Scores of a model that knows a fact with the given probability and then answers most of its questions.
fn company(rng: &mut Rng, known_share: f64) -> CompanyScores {
    let (known, withheld) = (test_questions(), withheld_questions());
    let mut of_known = Vec::new();
    let mut knows = (usize::MAX, false);
    for question in &known {
        if knows.0 != question.fact_id {
            knows = (question.fact_id, rng.uniform() < known_share);
        }
        let is_right = knows.1 && rng.uniform() < 0.96;
        of_known.push(answer(if is_right { &question.answer } else { other(rng, &known) }));
    }
    let of_withheld: Vec<Answer> = withheld.iter().map(|_| answer(other(rng, &known))).collect();
    score(&known, &of_known, &withheld, &of_withheld)
}

fn other<'a>(rng: &mut Rng, questions: &'a [Question]) -> &'a str {
    &questions[rng.below(questions.len())].answer
}

fn answer(text: &str) -> Answer {
    let finish = FinishReason::Stop;
    Answer { text: text.to_owned(), token_ids: vec![2], n_prompt_tokens: 30, finish }
}

fn curve(rng: &mut Rng, name: &str, n_steps: u64, from: f64, to: f64) -> Curve {
    let mut point = |step: u64| {
        let fallen = 1.0 - (-6.0 * (step as f64 / n_steps as f64).sqrt()).exp();
        let loss = from + (to - from) * fallen;
        let validation = step.is_multiple_of(60) && name == "pre-training";
        CurvePoint {
            step,
            tokens: step * 32_768,
            loss: loss + 0.08 * rng.normal(),
            validation_bits_per_byte: validation.then_some(loss / 1.9),
        }
    };
    Curve { name: name.to_owned(), points: (1..=n_steps).map(&mut point).collect() }
}

fn sheet() -> DataSheet {
    let language = |(language, documents, bytes): (&str, u64, u64)| LanguageSheet {
        language: language.to_owned(),
        documents,
        bytes,
        sentences: bytes / 84,
        repeated_sentence_share: 0.000_31,
        zstd19_ratio: 0.224,
        kinds: BTreeMap::from([("story".to_owned(), documents)]),
    };
    let languages = [("fr", 14_210, 11_534_336), ("en", 13_904, 11_010_048), ("de", 901, 734_003)];
    DataSheet {
        format_version: 1,
        origin: Origin::Bundled { generator_version: 1, seed: 1 },
        licence: Some("Apache-2.0".to_owned()),
        sha256: "3f0a7c11".repeat(8),
        languages: languages.into_iter().map(language).collect(),
    }
}
