//! The three runs: pre-training, general chat, the company.

use std::path::{Path, PathBuf};

use formats::WeightDtype;
use formats::durable::refuse_link;
use tensor::Device;
use train::optimizer::OptimizerSettings;
use train::recipe::{CheckpointSettings, DataSettings, FORMAT_VERSION, Start, ValidationSettings};
use train::schedule::Schedule;
use train::{RECIPE_FILE, Recipe, Run};

use super::budget::BATCH;
use super::prepare::Prepared;
use super::settings::{Plan, Settings};

/// The three runs of a quickstart, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// From random weights on text.
    Base,
    /// From the base model on general conversations.
    Chat,
    /// From the chat model on the company's documents and questions.
    Specialised,
}

impl Stage {
    /// In the order in which they run.
    pub(crate) const ALL: [Self; 3] = [Self::Base, Self::Chat, Self::Specialised];

    /// Name of the model that the stage makes.
    pub(crate) fn model(self) -> &'static str {
        match self {
            Self::Base => "base",
            Self::Chat => "chat",
            Self::Specialised => "specialised",
        }
    }

    /// What the stage does, for people.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Base => "pre-training",
            Self::Chat => "tuning: chat",
            Self::Specialised => "tuning: company",
        }
    }

    /// What the model is, for its card.
    pub(crate) fn summary(self) -> &'static str {
        match self {
            Self::Base => "A base model: it continues text.",
            Self::Chat => "A chat model: it answers short questions.",
            Self::Specialised => {
                "A specialised chat model: it answers questions about one invented company."
            }
        }
    }

    /// What the model learnt from, for its card.
    pub(crate) fn data(self) -> &'static str {
        match self {
            Self::Base => "The text of the data sheet.",
            Self::Chat => "The text of the data sheet, then general conversations.",
            Self::Specialised => {
                "The text of the data sheet, then general conversations, then the documents of an invented company \
                 and questions about them."
            }
        }
    }

    /// Folder of the run.
    pub(crate) fn run_dir(self, dir: &Path) -> PathBuf {
        dir.join(match self {
            Self::Base => "pretrain",
            Self::Chat => "tune-chat",
            Self::Specialised => "tune-company",
        })
    }

    /// The recipe of the stage's run: that of its folder, else a new one.
    ///
    /// # Errors
    /// When the folder is a link, or a value cannot be used: `quickstart.toml` may be a stranger's.
    pub(crate) fn recipe(
        self,
        dir: &Path,
        settings: &Settings,
        plan: &Plan,
    ) -> anyhow::Result<Recipe> {
        let run_dir = self.run_dir(dir);
        refuse_link(&run_dir)?;
        let path = run_dir.join(RECIPE_FILE);
        if path.is_file() {
            return Ok(Recipe::read(&path)?);
        }
        let recipe = self.new_recipe(dir, settings, plan);
        recipe.check()?;
        Ok(recipe)
    }

    fn new_recipe(self, dir: &Path, settings: &Settings, plan: &Plan) -> Recipe {
        let files = Prepared::of(dir);
        let mut data = DataSettings {
            tokenizer: files.tokenizer(),
            shards: Vec::new(),
            conversations: Vec::new(),
            documents: Vec::new(),
        };
        let (start, n_steps, peak_learning_rate, warmup_steps, decay_share) = match self {
            Self::Base => {
                data.shards.push(files.pretraining());
                (Start::Random(plan.shape), plan.pretrain_steps, 4e-3, 40_u64, 0.3)
            }
            Self::Chat => {
                data.conversations.push(files.chat());
                data.documents.push(files.replay());
                let start = Start::Run(Self::Base.run_dir(dir));
                (start, plan.chat_steps, 1.2e-3, 10, 0.6)
            }
            Self::Specialised => {
                data.conversations.extend([files.company_questions(), files.chat_replay()]);
                // Each pass has every fact in 192 questions: the documents, too, can be read twice.
                let documents = files.company_documents();
                data.documents.extend([documents.clone(), documents, files.replay()]);
                let start = Start::Run(Self::Chat.run_dir(dir));
                (start, plan.company_steps, 2e-3, 20, 0.5)
            }
        };
        let schedule = Schedule {
            peak_learning_rate,
            warmup_steps: warmup_steps.min(n_steps / 4),
            decay_steps: (n_steps as f64 * decay_share) as u64,
        };
        Recipe {
            format_version: FORMAT_VERSION,
            n_steps,
            seed: settings.seed,
            dtype: WeightDtype::Bf16,
            start,
            adapter: None,
            data,
            batch: BATCH,
            schedule,
            optimizer: OptimizerSettings::default(),
            checkpoint: CheckpointSettings { every_steps: 200, n_keep: 2 },
            validation: Some(ValidationSettings {
                shard: files.validation(),
                every_steps: (n_steps / 5).max(1),
            }),
        }
    }

    /// The stage's run of this recipe, new or taken up at its last checkpoint.
    ///
    /// # Errors
    /// When it cannot be made or read.
    pub(crate) fn open(self, dir: &Path, recipe: Recipe, device: Device) -> anyhow::Result<Run> {
        let run_dir = self.run_dir(dir);
        if run_dir.join(RECIPE_FILE).is_file() {
            return Ok(Run::resume(&run_dir, device)?);
        }
        Ok(Run::create(&run_dir, recipe, device)?)
    }
}
