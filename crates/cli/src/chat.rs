//! `galerne chat`: a conversation in the terminal, or on a pipe.

use std::io::{self, BufRead, IsTerminal};

use anyhow::Context as _;
use engine::{EngineHandle, Sampling};
use eval::figures::short;
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;
use tokenizer::{ChatTemplate, Conversation, Ending, Message, Role, TextStream};

use crate::answer::{Ended, Question, answer};
use crate::context::Context;
use crate::engine_args::EngineArgs;
use crate::failure::{Failure, message};
use crate::generate::SamplingArgs;
use crate::open_model::{LoadArgs, OpenModel};
use crate::os::{StopSignal, StopSignals};

/// What `/help` says.
const HELP: &str = "/new          begin a new conversation
/model        show the model
/model NAME   talk with another model, in a new conversation
/help         show this
Ctrl-C stops an answer, Ctrl-D leaves.";

/// Arguments of `galerne chat`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Model: a name in the home, or a path (with a slash or a dot)
    #[arg(long, value_name = "NAME|PATH")]
    model: String,
    #[command(flatten)]
    load: LoadArgs,
    /// Instructions for the whole conversation [default: none]
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Most tokens of an answer
    #[arg(long, value_name = "N", default_value_t = 512)]
    max_tokens: usize,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    engine: EngineArgs,
}

/// Runs the command.
///
/// # Errors
/// When the model cannot be used or the terminal fails.
pub(crate) fn run(args: Args, context: &Context) -> anyhow::Result<()> {
    context.refuse_json("chat")?;
    args.sampling.check()?;
    args.engine.check()?;
    let mut talk = Talk::open(&args.model, &args, context)?;
    let mut input = Input::open()?;
    if input.is_terminal() {
        context.say(&format!("{}: /help for help, Ctrl-D to leave", talk.model.name));
    }
    while let Some(line) = input.next_line()? {
        let line = line.trim();
        match line.strip_prefix('/') {
            None if line.is_empty() => {}
            None => talk.say(line, &args, context)?,
            Some(command) => talk.obey(command.trim(), &args, context)?,
        }
    }
    Ok(())
}

/// A model and the conversation with it.
struct Talk {
    model: OpenModel,
    engine: EngineHandle,
    template: ChatTemplate,
    sampling: Sampling,
    conversation: Conversation,
}

impl Talk {
    fn open(value: &str, args: &Args, context: &Context) -> anyhow::Result<Self> {
        let model = OpenModel::open(value, &args.load, context)?;
        let template = model
            .template
            .clone()
            .ok_or_else(|| Failure::NoTemplate { model: model.name.clone() })?;
        let limits = model.limits_of_one(&args.engine, model.config.context_len);
        let engine = model.start_engine(&args.engine, limits, context)?;
        let sampling = args.sampling.resolve_for(&model);
        let mut talk =
            Self { model, engine, template, sampling, conversation: Conversation::default() };
        talk.begin(args);
        Ok(talk)
    }

    /// Forgets what was said, but not the instructions.
    fn begin(&mut self, args: &Args) {
        let system = args.system.iter().map(|text| Message::new(Role::System, text));
        self.conversation.messages = system.collect();
    }

    fn obey(&mut self, command: &str, args: &Args, context: &Context) -> anyhow::Result<()> {
        match command.split_once(' ').map_or((command, ""), |(name, rest)| (name, rest.trim())) {
            ("new", "") => {
                self.begin(args);
                context.say("a new conversation");
            }
            ("model", "") => context.say(&self.describe()),
            ("model", name) => match Self::open(name, args, context) {
                Ok(talk) => {
                    *self = talk;
                    context.say(&format!("now talking with {}", self.model.name));
                }
                Err(error) => context.say(&message(&error)),
            },
            ("help", _) => context.say(HELP),
            _ => context.say(&format!("there is no command /{command}\n{HELP}")),
        }
        Ok(())
    }

    fn describe(&self) -> String {
        let licence = self.model.lineage.as_ref().and_then(|lineage| lineage.licence.as_deref());
        format!(
            "{}: {} parameters, licence {}",
            self.model.name,
            short(self.model.config.n_parameters() as f64),
            licence.unwrap_or("not stated")
        )
    }

    /// Asks and shows the answer. What cannot be answered is not kept in the conversation.
    fn say(&mut self, text: &str, args: &Args, context: &Context) -> anyhow::Result<()> {
        let n_before = self.conversation.messages.len();
        self.conversation.messages.push(Message::new(Role::User, text));
        match self.answer(args, context) {
            Ok(text) if !text.trim().is_empty() => {
                self.conversation.messages.push(Message::new(Role::Assistant, text));
                Ok(())
            }
            outcome => {
                self.conversation.messages.truncate(n_before);
                match outcome {
                    Ok(_) => context.say("(an empty answer; the question is not kept)"),
                    Err(error) if error.downcast_ref::<engine::EngineError>().is_some() => {
                        context
                            .say(&format!("{}; /new begins a new conversation", message(&error)));
                    }
                    Err(error) => return Err(error),
                }
                Ok(())
            }
        }
    }

    fn answer(&self, args: &Args, context: &Context) -> anyhow::Result<String> {
        let tokenizer = self.model.tokenizer()?;
        let rendered = self.template.render(tokenizer, &self.conversation, Ending::AwaitAnswer)?;
        // Taken for the answer alone: at the prompt, Ctrl-C is the line editor's.
        let signals = StopSignals::take(&[StopSignal::Interrupt]).context("cannot take signals")?;
        // With one seed for all answers, those of one conversation would make the same draws.
        let seed = self.sampling.seed.wrapping_add(self.conversation.messages.len() as u64);
        let question = Question {
            prompt: rendered.token_ids,
            max_tokens: args.max_tokens,
            sampling: Sampling { seed, ..self.sampling.clone() },
            stop_ids: self.model.eos_ids.clone(),
            adapter: self.model.adapter.clone(),
            mask: None,
            stop_strings: Vec::new(),
            text: Some((tokenizer.clone(), TextStream::answer(&self.template))),
        };
        let answer = answer(&self.engine, question, &signals, |text| {
            if text.is_empty() { Ok(()) } else { context.print(text) }
        })?;
        context.print("\n")?;
        match answer.ended {
            Ended::Complete => {}
            Ended::AtLength => context.say("(cut off at the greatest length)"),
            Ended::OnSignal(_) => context.say("(stopped)"),
        }
        Ok(answer.text.unwrap_or_default())
    }
}

/// Where the questions come from.
enum Input {
    /// A person: with line editing and history.
    Terminal(Box<DefaultEditor>),
    /// A pipe or a file: one question per line.
    Lines,
}

impl Input {
    fn open() -> anyhow::Result<Self> {
        if io::stdin().is_terminal() && io::stdout().is_terminal() {
            let editor = DefaultEditor::new().context("cannot use the terminal")?;
            return Ok(Self::Terminal(Box::new(editor)));
        }
        Ok(Self::Lines)
    }

    fn is_terminal(&self) -> bool {
        matches!(self, Self::Terminal(_))
    }

    /// The next line; none at the end.
    fn next_line(&mut self) -> anyhow::Result<Option<String>> {
        match self {
            Self::Terminal(editor) => loop {
                match editor.readline("> ") {
                    Ok(line) => {
                        editor.add_history_entry(&line).context("cannot keep the history")?;
                        return Ok(Some(line));
                    }
                    // Ctrl-C discards the line that is being typed.
                    Err(ReadlineError::Interrupted) => {}
                    Err(ReadlineError::Eof) => return Ok(None),
                    Err(error) => return Err(error).context("cannot read from the terminal"),
                }
            },
            Self::Lines => {
                let mut line = String::new();
                let n =
                    io::stdin().lock().read_line(&mut line).context("cannot read from stdin")?;
                Ok((n > 0).then_some(line))
            }
        }
    }
}
