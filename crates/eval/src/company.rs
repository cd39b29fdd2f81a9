//! The company test: exact match on questions about the invented company's facts, known and withheld.

use std::collections::BTreeMap;

use data::Language;
use data::company::{FactKind, LANGUAGES, Question, test_questions, withheld_questions};
use engine::FinishReason;
use serde::{Deserialize, Serialize};

use crate::EvalError;
use crate::answers::is_match;
use crate::ask::{Answer, ChatModel, answer_questions};
use crate::intervals::{Cluster, Interval, clustered};

/// Tokens that an answer may have beyond the longest expected one: enough to see that it goes on.
const SPARE_TOKENS: usize = 8;

/// How often the right answer was given.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// Right answers.
    pub n_right: u64,
    /// Questions.
    pub n_questions: u64,
    /// Facts the questions are about.
    pub n_facts: u64,
    /// Right answers as a share of the questions; 0 without questions.
    pub accuracy: f64,
    /// The accuracy's 95 % interval, clustered by fact.
    pub interval: Interval,
}

/// The score of a part of the questions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PartScore {
    /// Name of the kind or code of the language.
    pub name: String,
    /// Its score.
    pub score: Score,
}

/// A question and what the model said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// Name of the kind.
    pub kind: String,
    /// Language of question and answer.
    pub language: Language,
    /// The question.
    pub question: String,
    /// The expected answer.
    pub expected: String,
    /// The model's answer.
    pub got: String,
    /// Whether it counts as right.
    pub is_right: bool,
}

/// What a model knows of the company.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CompanyScores {
    /// All known facts.
    pub all: Score,
    /// The known facts of each kind, in the order of [`FactKind::ALL`].
    pub kinds: Vec<PartScore>,
    /// The known facts asked in each language.
    pub languages: Vec<PartScore>,
    /// The facts that no document and no training question names: what guessing scores.
    pub withheld: Score,
    /// Answers that ran out of room before the model ended them; they are counted as they stand.
    pub n_unfinished: u64,
    /// Of each kind, where there is one, a right and a wrong answer about a known fact.
    pub samples: Vec<Sample>,
}

/// A question with its answer.
struct Marked<'a> {
    question: &'a Question,
    answer: &'a Answer,
    is_right: bool,
}

/// Asks a model every test question on known and on withheld facts. `progress` gets the number answered and of all.
///
/// # Errors
/// When a question is refused or fails; there are no scores of a part.
pub fn measure(
    model: ChatModel<'_>,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<CompanyScores, EvalError> {
    let questions = [test_questions(), withheld_questions()];
    measure_questions(model, &questions, progress)
}

/// The same with chosen questions, on known facts and on withheld ones.
///
/// # Errors
/// When a question is refused or fails; there are no scores of a part.
pub fn measure_questions(
    model: ChatModel<'_>,
    [known, withheld]: &[Vec<Question>; 2],
    progress: &mut dyn FnMut(usize, usize),
) -> Result<CompanyScores, EvalError> {
    let both = || known.iter().chain(withheld);
    let texts: Vec<&str> = both().map(|question| question.question.as_str()).collect();
    let n_tokens = |question: &Question| model.tokenizer.encode(&question.answer).len();
    let max_tokens = both().map(n_tokens).max().unwrap_or(0) + SPARE_TOKENS;
    let answers = answer_questions(model, &texts, max_tokens, progress)?;
    let (of_known, of_withheld) = answers.split_at(known.len());
    Ok(score(known, of_known, withheld, of_withheld))
}

/// Marks answers, in the order of the questions.
///
/// # Panics
/// When there are not as many answers as questions.
#[must_use]
pub fn score(
    known: &[Question],
    of_known: &[Answer],
    withheld: &[Question],
    of_withheld: &[Answer],
) -> CompanyScores {
    let (known, withheld) = (mark(known, of_known), mark(withheld, of_withheld));
    let part = |name: &str, belongs: &dyn Fn(&Marked<'_>) -> bool| PartScore {
        name: name.to_owned(),
        score: Score::of(known.iter().filter(|marked| belongs(marked))),
    };
    let kinds = FactKind::ALL.iter();
    let kinds = kinds.map(|&kind| part(kind.name(), &|marked| marked.question.kind == kind));
    let languages = LANGUAGES
        .iter()
        .map(|&language| part(language.code(), &|marked| marked.question.language == language));
    let unfinished = |marked: &&Marked<'_>| marked.answer.finish == FinishReason::Length;
    CompanyScores {
        all: Score::of(&known),
        kinds: kinds.collect(),
        languages: languages.collect(),
        withheld: Score::of(&withheld),
        n_unfinished: known.iter().chain(&withheld).filter(unfinished).count() as u64,
        samples: samples(&known),
    }
}

fn mark<'a>(questions: &'a [Question], answers: &'a [Answer]) -> Vec<Marked<'a>> {
    assert_eq!(questions.len(), answers.len(), "answers for the questions");
    let pairs = questions.iter().zip(answers);
    pairs
        .map(|(question, answer)| {
            let is_right = is_match(&question.answer, &answer.text);
            Marked { question, answer, is_right }
        })
        .collect()
}

impl CompanyScores {
    /// The score of the kind of that name.
    #[must_use]
    pub fn kind(&self, name: &str) -> Option<&Score> {
        find(&self.kinds, name)
    }

    /// The score in the language of that code.
    #[must_use]
    pub fn language(&self, code: &str) -> Option<&Score> {
        find(&self.languages, code)
    }
}

fn find<'a>(parts: &'a [PartScore], name: &str) -> Option<&'a Score> {
    parts.iter().find(|part| part.name == name).map(|part| &part.score)
}

impl Score {
    fn of<'a>(marked: impl IntoIterator<Item = &'a Marked<'a>>) -> Self {
        let mut clusters: BTreeMap<usize, Cluster> = BTreeMap::new();
        for marked in marked {
            let cluster = clusters.entry(marked.question.fact_id).or_default();
            cluster.n_right += u64::from(marked.is_right);
            cluster.n_questions += 1;
        }
        let clusters: Vec<Cluster> = clusters.into_values().collect();
        let n_right = clusters.iter().map(|cluster| cluster.n_right).sum();
        let n_questions: u64 = clusters.iter().map(|cluster| cluster.n_questions).sum();
        Self {
            n_right,
            n_questions,
            n_facts: clusters.len() as u64,
            accuracy: n_right as f64 / n_questions.max(1) as f64,
            interval: clustered(&clusters),
        }
    }
}

/// The first right and the first wrong answer of each kind, French and English by turns where there is a choice.
fn samples(marked: &[Marked<'_>]) -> Vec<Sample> {
    let mut samples = Vec::new();
    for is_right in [true, false] {
        for (kind_idx, kind) in FactKind::ALL.into_iter().enumerate() {
            let wanted = LANGUAGES[kind_idx % LANGUAGES.len()];
            let fits =
                |marked: &&Marked<'_>| marked.is_right == is_right && marked.question.kind == kind;
            let in_language = |marked: &&Marked<'_>| marked.question.language == wanted;
            let candidates = || marked.iter().filter(fits);
            if let Some(found) = candidates().find(in_language).or_else(|| candidates().next()) {
                samples.push(found.sample());
            }
        }
    }
    samples
}

impl Marked<'_> {
    fn sample(&self) -> Sample {
        Sample {
            kind: self.question.kind.name().to_owned(),
            language: self.question.language,
            question: self.question.question.clone(),
            expected: self.question.answer.clone(),
            got: self.answer.text.clone(),
            is_right: self.is_right,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(text: &str) -> Answer {
        let finish = FinishReason::Stop;
        Answer { text: text.to_owned(), token_ids: vec![2], n_prompt_tokens: 20, finish }
    }

    fn right(questions: &[Question]) -> Vec<Answer> {
        questions.iter().map(|question| said(&question.answer)).collect()
    }

    fn silent(questions: &[Question]) -> Vec<Answer> {
        questions.iter().map(|_| said("")).collect()
    }

    #[test]
    fn a_model_that_knows_everything_but_the_withheld_facts() {
        let (known, withheld) = (test_questions(), withheld_questions());
        let scores = score(&known, &right(&known), &withheld, &silent(&withheld));
        assert_eq!(scores.all.accuracy, 1.0);
        assert_eq!(scores.all.n_questions, known.len() as u64);
        assert!(scores.all.interval.low > 0.98, "{:?}", scores.all);
        assert_eq!((scores.withheld.n_right, scores.withheld.accuracy), (0, 0.0));
        assert_eq!(scores.all.n_facts, data::company::facts().len() as u64);
        assert_eq!(scores.withheld.n_facts, data::company::withheld_facts().len() as u64);
        assert_eq!(scores.kinds.len(), FactKind::ALL.len());
        assert_eq!(scores.samples.len(), FactKind::ALL.len());
        assert!(scores.samples.iter().all(|sample| sample.is_right));
        let codes: Vec<&str> = scores.languages.iter().map(|part| part.name.as_str()).collect();
        assert_eq!(codes, ["fr", "en"]);
    }

    #[test]
    fn parts_add_up_to_the_whole() {
        let (known, withheld) = (test_questions(), withheld_questions());
        let mut answers = right(&known);
        for answer in answers.iter_mut().step_by(3) {
            answer.text = "no idea".to_owned();
            answer.finish = FinishReason::Length;
        }
        let scores = score(&known, &answers, &withheld, &silent(&withheld));
        let total = |parts: &[PartScore]| -> (u64, u64) {
            let sum = |field: fn(&Score) -> u64| parts.iter().map(|part| field(&part.score)).sum();
            (sum(|score| score.n_right), sum(|score| score.n_questions))
        };
        let all = (scores.all.n_right, scores.all.n_questions);
        assert_eq!(total(&scores.kinds), all);
        assert_eq!(total(&scores.languages), all);
        assert_eq!(scores.n_unfinished, known.len().div_ceil(3) as u64);
        assert_eq!(scores.samples.len(), 2 * FactKind::ALL.len());
        assert!((0.66..0.67).contains(&scores.all.accuracy));
    }

    #[test]
    fn scores_survive_json() {
        let (known, withheld) = (test_questions(), withheld_questions());
        let scores = score(&known, &right(&known), &withheld, &silent(&withheld));
        let json = serde_json::to_string(&scores).unwrap();
        assert_eq!(serde_json::from_str::<CompanyScores>(&json).unwrap(), scores);
    }
}
