//! `galerne tokenizer`: train one, and use it on lines.

use std::collections::BTreeMap;
use std::io::{self, BufRead};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use data::reader::FolderReader;
use formats::gguf::{GgufFile, GgufVocabulary};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use tokenizer::instruct::{InstructRequest, InstructVersion};
use tokenizer::{
    BpeTrainer, CONTROL_TOKENS, ChatTemplate, Conversation, Tokenizer, TrainOptions, instruct,
};
use train::export::write_tokenizer;

use crate::context::{Context, Form};
use crate::failure::Failure;
use crate::gguf_vocabulary;
use crate::table::table;

/// Arguments of `galerne tokenizer`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Learn a byte-level BPE vocabulary from the .txt and .md files of a folder
    Train {
        /// Folder of text, folders inside it included
        #[arg(long, value_name = "DIR")]
        text: PathBuf,
        /// Entries in all: control tokens, 256 bytes, merges
        #[arg(long, value_name = "N", default_value_t = TrainOptions::default().vocab_size)]
        vocab_size: usize,
        /// Folder to write tokenizer.json and friends into
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
    /// Turn lines of stdin into token ids; with --json, lines of JSON strings into lists
    Encode(Used),
    /// Turn lines of token ids into text; with --json, lists into JSON strings
    Decode(Used),
    /// Render chat requests, one JSON object per line, with the chat template; of {"prompt"} the prompt to go on with, of {"prompt",
    /// "suffix"} the one to fill the gap
    Render {
        #[command(flatten)]
        used: Used,
        /// Version of Mistral's instruct template: v1, v2, v3, v7, v11 or v13 [default: the one of the tokenizer's file,
        /// else the chat template of the folder, else that of tokenizers that are trained here]
        #[arg(long, value_name = "VERSION", value_parser = parse_version)]
        version: Option<InstructVersion>,
    },
    /// Show what a tokenizer holds
    Inspect(Used),
}

#[derive(Debug, clap::Args)]
struct Used {
    /// Tokenizer: a tokenizer.json, tekken.json, tokenizer.model or .gguf file, or a folder with one of the first three
    #[arg(long, value_name = "FILE|DIR")]
    tokenizer: PathBuf,
}

impl Used {
    fn open(&self) -> anyhow::Result<Tokenizer> {
        let opened = match self.gguf() {
            Some(vocabulary) => vocabulary.and_then(|known| gguf_vocabulary::tokenizer(&known)),
            None => Ok(Tokenizer::open(&self.tokenizer)?),
        };
        opened.with_context(|| format!("cannot use the tokenizer of {}", self.tokenizer.display()))
    }

    /// The vocabulary of a GGUF file, where one was given.
    fn gguf(&self) -> Option<anyhow::Result<GgufVocabulary>> {
        self.tokenizer.extension().filter(|extension| *extension == "gguf")?;
        let vocabulary = GgufFile::open(&self.tokenizer).and_then(|file| file.vocabulary());
        Some(vocabulary.map_err(Into::into).and_then(|found| found.context("it holds none")))
    }

    /// The template of the folder, or the one that the tokenizer's file alone stands for.
    fn template(&self, tokenizer: &Tokenizer) -> anyhow::Result<ChatTemplate> {
        let found = match self.gguf() {
            Some(known) => ChatTemplate::choose(known?.chat_template.as_deref(), tokenizer)?,
            None => ChatTemplate::open(&self.tokenizer, tokenizer)?,
        };
        match (found, tokenizer.version()) {
            (Some(template), _) => Ok(template),
            (None, Some(number)) => anyhow::bail!("templates of version {number} are not known"),
            (None, None) => Ok(ChatTemplate::default()),
        }
    }
}

/// Runs the command.
///
/// # Errors
/// When files or lines cannot be read.
pub(crate) fn run(args: Args, context: &Context) -> anyhow::Result<()> {
    match args.command {
        Command::Train { text, vocab_size, out } => train(&text, vocab_size, &out, context),
        Command::Encode(used) => {
            let tokenizer = used.open()?;
            for_lines(context, |line, form| encode(&tokenizer, line, form))
        }
        Command::Decode(used) => {
            let tokenizer = used.open()?;
            for_lines(context, |line, form| decode(&tokenizer, line, form))
        }
        Command::Render { used, version } => {
            let tokenizer = used.open()?;
            let template = match version {
                Some(version) => ChatTemplate::Instruct(version),
                None => used.template(&tokenizer)?,
            };
            for_lines(context, |line, form| render(&tokenizer, &template, line, form))
        }
        Command::Inspect(used) => inspect(&used.open()?, context),
    }
}

fn parse_version(text: &str) -> Result<InstructVersion, String> {
    let names = InstructVersion::ALL.map(InstructVersion::name);
    let found = InstructVersion::ALL.into_iter().find(|version| version.name() == text);
    found.ok_or_else(|| format!("expected one of {}", names.join(", ")))
}

fn train(text: &Path, vocab_size: usize, out: &Path, context: &Context) -> anyhow::Result<()> {
    let path = out.join("tokenizer.json");
    if path.exists() {
        let hint = "give another --out".to_owned();
        return Err(Failure::Exists { path, hint }.into());
    }
    let options = TrainOptions { vocab_size, n_threads: context.n_threads() };
    let mut trainer = BpeTrainer::new(options);
    let mut reader = FolderReader::open(text)?;
    for document in reader.by_ref() {
        trainer.feed(&document?.text);
    }
    context.say(&reader.report().to_string());
    let tokenizer = trainer.train()?;
    write_tokenizer(out, &tokenizer)?;
    match context.form() {
        Form::Text => context.print(&format!("{}\n", path.display())),
        Form::Json => context.print_json(&json!({
            "tokenizer": path.display().to_string(),
            "vocab_size": tokenizer.vocab_size(),
            "digest": tokenizer.digest(),
            "n_documents": reader.report().n_documents,
            "n_bytes": reader.report().n_bytes,
        })),
    }
}

/// Answers each line of stdin with one line.
fn for_lines(
    context: &Context,
    answer: impl Fn(&str, Form) -> anyhow::Result<String>,
) -> anyhow::Result<()> {
    let mut input = io::stdin().lock();
    let mut line = String::new();
    for number in 1_u64.. {
        line.clear();
        let n = input.read_line(&mut line).with_context(|| format!("line {number} of stdin"))?;
        if n == 0 {
            break;
        }
        let text = line.strip_suffix('\n').unwrap_or(&line);
        let text =
            answer(text, context.form()).with_context(|| format!("line {number} of stdin"))?;
        context.print(&format!("{text}\n"))?;
    }
    Ok(())
}

fn to_json(value: &impl Serialize) -> anyhow::Result<String> {
    serde_json::to_string(value).context("cannot write the answer as JSON")
}

fn encode(tokenizer: &Tokenizer, line: &str, form: Form) -> anyhow::Result<String> {
    match form {
        Form::Json => {
            let text: String = serde_json::from_str(line).context("expected a JSON string")?;
            to_json(&tokenizer.encode(&text))
        }
        Form::Text => {
            let ids = tokenizer.encode(line);
            Ok(ids.iter().map(u32::to_string).collect::<Vec<_>>().join(" "))
        }
    }
}

fn decode(tokenizer: &Tokenizer, line: &str, form: Form) -> anyhow::Result<String> {
    match form {
        Form::Json => {
            let ids: Vec<u32> =
                serde_json::from_str(line).context("expected a list of token ids")?;
            to_json(&tokenizer.decode(&ids))
        }
        Form::Text => {
            let parts = line.split([' ', ',', '\t']).filter(|part| !part.is_empty());
            let ids = parts
                .map(|part| part.parse().with_context(|| format!("`{part}`: expected a token id")));
            Ok(tokenizer.decode(&ids.collect::<anyhow::Result<Vec<u32>>>()?))
        }
    }
}

/// Members of a chat request that do not change how it is rendered.
const OTHER_MEMBERS: [&str; 9] = [
    "model",
    "temperature",
    "top_p",
    "top_k",
    "max_tokens",
    "stream",
    "stop",
    "seed",
    "random_seed",
];

fn render(
    tokenizer: &Tokenizer,
    template: &ChatTemplate,
    line: &str,
    form: Form,
) -> anyhow::Result<String> {
    let members = members(line)?;
    let rendered = match template {
        _ if members.contains_key("prompt") => {
            let TextRequest { prompt, suffix } = request(&members, &["prompt", "suffix"])?;
            match suffix.filter(|suffix| !suffix.is_empty()) {
                Some(suffix) => tokenizer.render_fill_in_the_middle(&prompt, &suffix)?,
                None => tokenizer.render_prompt(&prompt),
            }
        }
        ChatTemplate::Instruct(version) => {
            let request: InstructRequest = request(&members, &["messages", "tools"])?;
            tokenizer.encode_pieces(&instruct::pieces(*version, &request, request.ending())?)?
        }
        _ => {
            let conversation: Conversation = request(&members, &["messages"])?;
            template.render(tokenizer, &conversation, conversation.ending())?
        }
    };
    match form {
        Form::Text => Ok(rendered.text),
        Form::Json => {
            let trained: Vec<u8> = rendered.trained.iter().map(|&is| u8::from(is)).collect();
            to_json(&json!({
                "token_ids": rendered.token_ids,
                "text": rendered.text,
                "trained": trained,
            }))
        }
    }
}

/// A request to go on with a text, as `/v1/completions` takes it.
#[derive(Debug, Deserialize)]
struct TextRequest {
    /// The text, or what comes before its gap.
    prompt: String,
    /// What comes after the gap; without it, or when it is empty, there is none.
    suffix: Option<String>,
}

/// Values stay text: the model reads the members of a tool's schema in their order.
type Members = BTreeMap<String, Box<RawValue>>;

const EXPECTED: &str = "expected a chat request, or a prompt and perhaps a suffix";

/// The members of a request that change how it is rendered.
fn members(line: &str) -> anyhow::Result<Members> {
    let mut members: Members = serde_json::from_str(line).context(EXPECTED)?;
    members.retain(|member, _| !OTHER_MEMBERS.contains(&member.as_str()));
    Ok(members)
}

/// What a template reads of a request: the members that it knows, of which the first must be there.
fn request<T: DeserializeOwned>(members: &Members, known: &[&str]) -> anyhow::Result<T> {
    if let Some(member) = members.keys().find(|member| !known.contains(&member.as_str())) {
        anyhow::bail!("`{member}` is not supported");
    }
    if !members.contains_key(known[0]) {
        anyhow::bail!("`{}` is missing", known[0]);
    }
    serde_json::from_str(&to_json(members)?).context(EXPECTED)
}

fn inspect(tokenizer: &Tokenizer, context: &Context) -> anyhow::Result<()> {
    let controls: Vec<(&str, Option<u32>)> =
        CONTROL_TOKENS.iter().map(|&name| (name, tokenizer.control_id(name))).collect();
    match context.form() {
        Form::Json => {
            let controls: Map<String, Value> =
                controls.iter().map(|(name, id)| ((*name).to_owned(), json!(id))).collect();
            context.print_json(&json!({
                "vocab_size": tokenizer.vocab_size(),
                "digest": tokenizer.digest(),
                "control_tokens": controls,
            }))
        }
        Form::Text => {
            let mut rows = vec![
                ("vocabulary", tokenizer.vocab_size().to_string()),
                ("digest", tokenizer.digest()),
            ];
            for (name, id) in controls {
                rows.push((name, id.map_or_else(|| "none".to_owned(), |id| id.to_string())));
            }
            context.print(&table(&rows))
        }
    }
}
