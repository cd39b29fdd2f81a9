//! Preparing the data: the corpus with its data sheet, the tokenizer, token shards, conversation files.

use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context as _, anyhow, bail};
use data::shard::ShardWriter;
use data::sheet::{DataSheet, Origin, SheetBuilder};
use data::{Document, Language, bundled, chat_set, company, reader};
use tokenizer::{BpeTrainer, Tokenizer, TrainOptions};
use train::export::write_tokenizer;

use super::settings::Settings;

/// General conversations; about 320,000 tokens.
const N_CHAT_DIALOGUES: usize = 8_000;
/// One in so many of them is repeated in each pass of fine-tuning on the company, which would forget how to chat.
const CHAT_REPLAY_STEP: usize = 4;
/// Hurried forms of each of the company's training questions.
const N_HURRIED: usize = 7;
/// Bytes of pre-training text among the samples of each fine-tuning pass, about 300,000 tokens.
const REPLAY_BYTES: usize = 1_000_000;
/// Bytes of held-out text that is measured during training; at its end all of it is.
const VALIDATION_BYTES: usize = 100_000;
/// Share of a user's own text that is held out.
const HELD_OUT_SHARE: f64 = 0.01;

/// Where the prepared files of a quickstart are.
#[derive(Clone, Debug)]
pub(crate) struct Prepared {
    dir: PathBuf,
}

impl Prepared {
    /// The files of the quickstart in `run_dir`.
    pub(crate) fn of(run_dir: &Path) -> Self {
        Self { dir: run_dir.join("data") }
    }

    /// The folder of all of them.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Folder of the tokenizer.
    pub(crate) fn tokenizer(&self) -> PathBuf {
        self.dir.join("tokenizer")
    }

    /// Shard of the pre-training text.
    pub(crate) fn pretraining(&self) -> PathBuf {
        self.dir.join("pretraining")
    }

    /// Shard of some held-out text of every language.
    pub(crate) fn validation(&self) -> PathBuf {
        self.dir.join("validation")
    }

    /// Shard of the held-out text of one language; `None` stands for text of unknown language.
    pub(crate) fn validation_of(&self, language: Option<Language>) -> PathBuf {
        self.dir.join(format!("validation-{}", language.map_or("und", Language::code)))
    }

    /// General conversations.
    pub(crate) fn chat(&self) -> PathBuf {
        self.dir.join("chat.jsonl")
    }

    /// Some of the general conversations, which fine-tuning on the company repeats.
    pub(crate) fn chat_replay(&self) -> PathBuf {
        self.dir.join("chat-replay.jsonl")
    }

    /// Questions and answers about the company.
    pub(crate) fn company_questions(&self) -> PathBuf {
        self.dir.join("company.jsonl")
    }

    /// Shard of the company's documents.
    pub(crate) fn company_documents(&self) -> PathBuf {
        self.dir.join("company-documents")
    }

    /// Shard of some of the pre-training text, which fine-tuning repeats so that it is not forgotten.
    pub(crate) fn replay(&self) -> PathBuf {
        self.dir.join("replay")
    }

    /// The data sheet, written last: where it is, everything is.
    pub(crate) fn sheet(&self) -> PathBuf {
        self.dir.join("sheet.json")
    }

    /// Whether all files are there.
    pub(crate) fn is_complete(&self) -> bool {
        self.sheet().is_file()
    }
}

/// Text to learn from and text to measure on.
struct Corpus {
    train: Vec<Document>,
    held_out: Vec<Document>,
    origin: Origin,
    licence: Option<String>,
}

/// Makes everything that the three runs read. An interrupted preparation begins anew.
///
/// # Errors
/// When the user's text cannot be read or a file cannot be written.
pub(crate) fn prepare(
    run_dir: &Path,
    settings: &Settings,
    n_threads: usize,
    report: &dyn Fn(&str),
) -> anyhow::Result<DataSheet> {
    let files = Prepared::of(run_dir);
    if files.dir.exists() {
        std::fs::remove_dir_all(&files.dir)
            .with_context(|| format!("cannot clear {}", files.dir.display()))?;
    }
    std::fs::create_dir_all(&files.dir)
        .with_context(|| format!("cannot create {}", files.dir.display()))?;
    report("writing the corpus");
    let corpus = read_corpus(settings, report)?;
    // The sheet compresses the whole text at the highest level: it runs beside the tokenizer.
    let sheet = thread::scope(|scope| -> anyhow::Result<DataSheet> {
        let sheet = thread::Builder::new()
            .name("data-sheet".to_owned())
            .spawn_scoped(scope, || describe(&corpus))
            .context("cannot start a thread")?;
        report("training the tokenizer");
        let tokenizer = train_tokenizer(&corpus.train, settings.vocab_size, n_threads)?;
        write_tokenizer(&files.tokenizer(), &tokenizer)?;
        report("encoding");
        write_shards(&files, &tokenizer, &corpus)?;
        write_company(&files, &tokenizer, settings.seed)?;
        sheet.join().map_err(|_| anyhow!("the data sheet's thread panicked"))?
    })?;
    sheet.write(&files.dir)?;
    Ok(sheet)
}

fn read_corpus(settings: &Settings, report: &dyn Fn(&str)) -> anyhow::Result<Corpus> {
    let Some(folder) = &settings.text else {
        let seed = settings.seed;
        let held_out =
            Language::ALL.into_iter().flat_map(|language| bundled::validation(seed, language));
        return Ok(Corpus {
            train: bundled::documents(seed, bundled::DEFAULT_BYTES).collect(),
            held_out: held_out.collect(),
            origin: Origin::Bundled { generator_version: bundled::GENERATOR_VERSION, seed },
            licence: Some(bundled::TEXT_LICENCE.to_owned()),
        });
    };
    let (documents, read) = reader::read_folder(folder)?;
    report(&read.to_string());
    let split = reader::hold_out(documents, HELD_OUT_SHARE, settings.seed)?;
    if split.held_out.is_empty() {
        bail!(
            "the text in {} is one document, expected two or more, so that one can be held out: cut it into several files",
            folder.display()
        );
    }
    let origin = Origin::Files { path: folder.display().to_string() };
    Ok(Corpus { train: split.train, held_out: split.held_out, origin, licence: None })
}

fn describe(corpus: &Corpus) -> anyhow::Result<DataSheet> {
    let mut builder = SheetBuilder::default();
    for document in &corpus.train {
        builder.add(document)?;
    }
    Ok(builder.finish(corpus.origin.clone(), corpus.licence.clone())?)
}

fn train_tokenizer(
    documents: &[Document],
    vocab_size: usize,
    n_threads: usize,
) -> anyhow::Result<Tokenizer> {
    let options = TrainOptions { vocab_size, n_threads };
    let mut trainer = BpeTrainer::new(options);
    documents.iter().for_each(|document| trainer.feed(&document.text));
    match trainer.train() {
        Err(tokenizer::Error::TextTooSmall { vocab_size, reached }) => bail!(
            "the text has too few different words: it supports a vocabulary of {reached} entries, a quickstart needs \
             {vocab_size}: give more text"
        ),
        trained => Ok(trained?),
    }
}

fn write_shards(files: &Prepared, tokenizer: &Tokenizer, corpus: &Corpus) -> anyhow::Result<()> {
    write_shard(&files.pretraining(), tokenizer, &corpus.train)?;
    write_shard(&files.replay(), tokenizer, spread(&corpus.train, REPLAY_BYTES))?;
    write_shard(&files.validation(), tokenizer, spread(&corpus.held_out, VALIDATION_BYTES))?;
    let mut languages: Vec<Option<Language>> =
        corpus.held_out.iter().map(|document| document.language).collect();
    languages.sort_unstable();
    languages.dedup();
    for language in languages {
        let documents = corpus.held_out.iter().filter(|document| document.language == language);
        write_shard(&files.validation_of(language), tokenizer, documents)?;
    }
    Ok(())
}

/// Documents of about `n_bytes` in all, at even distances.
fn spread(documents: &[Document], n_bytes: usize) -> impl Iterator<Item = &Document> {
    let total: usize = documents.iter().map(|document| document.text.len()).sum();
    documents.iter().step_by((total / n_bytes).max(1))
}

/// Conversations and company text, which neither the tokenizer nor pre-training sees.
fn write_company(files: &Prepared, tokenizer: &Tokenizer, seed: u64) -> anyhow::Result<()> {
    let chat = chat_set::conversations(N_CHAT_DIALOGUES, seed);
    chat_set::write_jsonl(&files.chat(), &chat)?;
    chat_set::write_jsonl(&files.chat_replay(), chat.iter().step_by(CHAT_REPLAY_STEP))?;
    let questions = company::training_questions(seed, N_HURRIED);
    let conversations = questions.iter().map(company::Question::conversation);
    chat_set::write_jsonl(&files.company_questions(), conversations)?;
    write_shard(&files.company_documents(), tokenizer, &company::documents())
}

/// Each document as BOS, text, EOS.
fn write_shard<'a>(
    dir: &Path,
    tokenizer: &Tokenizer,
    documents: impl IntoIterator<Item = &'a Document>,
) -> anyhow::Result<()> {
    let mut writer = ShardWriter::create(dir, &tokenizer.digest(), tokenizer.vocab_size())?;
    let mut token_ids = Vec::new();
    for document in documents {
        token_ids.clear();
        token_ids.push(tokenizer.bos_id());
        tokenizer.encode_into(&document.text, &mut token_ids);
        token_ids.push(tokenizer.eos_id());
        writer.add(&token_ids)?;
    }
    writer.finish(Vec::new())?;
    Ok(())
}
