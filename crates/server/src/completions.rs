//! `POST /v1/completions`.

use std::sync::Arc;

use api::{
    Completion, CompletionChoice, CompletionLogprobs, CompletionRequest, FinishReason,
    StreamFields, TokenLogprob,
};
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use tokenizer::{TextStream, Tokenizer};

use crate::app::SharedApp;
use crate::failure::Failure;
use crate::generation::{self, AnswerSettings, Generations, Piece, Scores, TotalUsage};
use crate::registry::ServedModel;
use crate::sse::{self, ClientGone, EventSink};
use crate::{background, body, ids};

/// Continues one or several texts, whole or in pieces.
pub(crate) async fn complete(
    State(app): State<SharedApp>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Failure> {
    let bytes = body::read(&headers, body, &app.limits).await?;
    let request = CompletionRequest::parse(&bytes)?;
    // An answer may take minutes, and a body megabytes.
    drop(bytes);
    let (name, stream) = (request.model.clone(), request.stream);
    let (ignored, n_answers) = (request.ignored_fields.clone(), request.sampling.n_answers);
    let model = app.models.get(&name)?;
    let places = Arc::clone(&model.encoders);
    let started = background::run_in_turn(&places, move || start(&model, request)).await?;
    let answer = Completion::new(ids::answer_id("cmpl"), ids::unix_time(), name);
    let usage = TotalUsage::new(n_answers);
    let response = if stream == StreamFields::Whole {
        Json(collect(answer, started, usage).await?).into_response()
    } else {
        sse::respond(move |sink| send_pieces(sink, answer, started, usage, stream))
    };
    Ok(body::naming_ignored(response, &ignored))
}

/// Generations and the choices that they become.
type Started = (Generations, Vec<Choice>);

/// Starts all generations before any is read: if the engine refuses one, dropping the others cancels them.
fn start(model: &ServedModel, request: CompletionRequest) -> Result<Started, Failure> {
    let CompletionRequest { model: name, prompts, suffix, sampling, logprobs, echo, .. } = request;
    let scores = Scores { n_top: logprobs, of_prompt: echo && logprobs.is_some() };
    let (mut generations, mut choices) = (Vec::new(), Vec::new());
    let settings = AnswerSettings::new(model, &sampling, scores)?;
    for input in prompts {
        let prompt = generation::text_prompt(&name, model, input, suffix.as_deref())?;
        let started = generation::start(&name, model, &prompt, &settings, "prompt")?;
        let echo = echo.then(|| Echo {
            token_ids: prompt.token_ids.into(),
            next: 0,
            stream: TextStream::new(),
            tokenizer: Arc::clone(&model.tokenizer),
        });
        choices.extend(started.iter().map(|_| Choice::new(echo.clone(), scores)));
        generations.extend(started);
    }
    Ok((Generations::new(generations), choices))
}

/// The prompt as a part of the answer.
#[derive(Clone)]
struct Echo {
    token_ids: Arc<[u32]>,
    /// The token that is said next.
    next: usize,
    stream: TextStream,
    tokenizer: Arc<Tokenizer>,
}

impl Echo {
    /// The next token by name, and the text that it completes.
    fn next(&mut self) -> Option<(String, String)> {
        let &token_id = self.token_ids.get(self.next)?;
        self.next += 1;
        let mut text = self.stream.push(&self.tokenizer, token_id);
        if self.next == self.token_ids.len() {
            text += &std::mem::take(&mut self.stream).finish();
        }
        Some((generation::token_text(&self.tokenizer, token_id), text))
    }
}

/// One choice while its pieces come.
struct Choice {
    echo: Option<Echo>,
    scores: Scores,
    /// Characters so far.
    n_chars: usize,
}

/// What is new in a choice.
struct News {
    text: String,
    logprobs: Option<CompletionLogprobs>,
}

impl Choice {
    fn new(echo: Option<Echo>, scores: Scores) -> Self {
        Self { echo, scores, n_chars: 0 }
    }

    /// Turns a piece into text and scores, after what is due of the prompt.
    fn take(&mut self, piece: Piece) -> (News, Option<Finished>) {
        let logprobs = self.scores.n_top.map(|_| CompletionLogprobs::default());
        let mut news = News { text: String::new(), logprobs };
        let mut finished = None;
        match piece {
            Piece::Prompt(score) => {
                let is_first = self.echo.as_ref().is_some_and(|echo| echo.next == 0);
                if is_first {
                    self.say_prompt_token(&mut news, None);
                }
                self.say_prompt_token(&mut news, Some(score));
            }
            Piece::Text { text, logprob } => {
                self.say_rest_of_prompt(&mut news);
                if let (Some(logprobs), Some(score)) = (&mut news.logprobs, logprob) {
                    logprobs.push(score.token.clone(), Some(score), self.n_chars);
                }
                self.say(&mut news, &text);
            }
            Piece::Finished { text, reason, usage } => {
                self.say_rest_of_prompt(&mut news);
                self.say(&mut news, &text);
                finished = Some((reason, usage));
            }
        }
        (news, finished)
    }

    fn say(&mut self, news: &mut News, text: &str) {
        self.n_chars += text.chars().count();
        news.text.push_str(text);
    }

    fn say_prompt_token(&mut self, news: &mut News, score: Option<TokenLogprob>) {
        let Some((token, text)) = self.echo.as_mut().and_then(Echo::next) else { return };
        if let Some(logprobs) = &mut news.logprobs {
            logprobs.push(token, score, self.n_chars);
        }
        self.say(news, &text);
    }

    /// The whole prompt where its tokens are not scored, its only token where there is no second one.
    fn say_rest_of_prompt(&mut self, news: &mut News) {
        while self.echo.as_ref().is_some_and(|echo| echo.next < echo.token_ids.len()) {
            self.say_prompt_token(news, None);
        }
    }
}

/// Why a choice ended, and its tokens.
type Finished = (FinishReason, api::Usage);

async fn collect(
    answer: Completion,
    (mut generations, mut choices): Started,
    mut usage: TotalUsage,
) -> Result<Completion, Failure> {
    let mut whole: Vec<CompletionChoice> = Vec::with_capacity(choices.len());
    whole.extend(choices.iter().enumerate().map(|(index, choice)| CompletionChoice {
        index,
        text: String::new(),
        logprobs: choice.scores.n_top.map(|_| CompletionLogprobs::default()),
        finish_reason: None,
    }));
    while let Some((index, piece)) = generations.next().await? {
        let (news, finished) = choices[index].take(piece);
        let choice = &mut whole[index];
        choice.text.push_str(&news.text);
        if let (Some(logprobs), Some(more)) = (&mut choice.logprobs, news.logprobs) {
            logprobs.append(more);
        }
        if let Some((reason, of_choice)) = finished {
            choice.finish_reason = Some(reason);
            usage.add(index, of_choice);
        }
    }
    Ok(Completion { choices: whole, usage: Some(usage.total()), ..answer })
}

/// The pieces of all choices as they come.
async fn send_pieces(
    sink: EventSink,
    answer: Completion,
    (mut generations, mut choices): Started,
    mut usage: TotalUsage,
    stream: StreamFields,
) -> Result<(), ClientGone> {
    loop {
        match generations.next().await {
            Ok(Some((index, piece))) => {
                let (News { text, logprobs }, finished) = choices[index].take(piece);
                let reason = finished.map(|(reason, of_choice)| {
                    usage.add(index, of_choice);
                    reason
                });
                sink.data(&answer.piece(index, text, logprobs, reason)).await?;
            }
            Ok(None) => break,
            Err(failure) => {
                failure.log();
                return sink.data(&failure.body()).await;
            }
        }
    }
    if stream == StreamFields::PiecesAndUsage {
        sink.data(&answer.usage(usage.total())).await?;
    }
    sink.done().await
}
