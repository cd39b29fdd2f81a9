//! What a run begins with, or goes on with: random weights, those of a model, those of a run's checkpoint.

use std::path::Path;

use formats::checkpoint::{self, Checkpoint};
use formats::config::to_hf_json;
use formats::licence::licence_of;
use formats::model_dir::ModelDir;
use formats::{FormatError, Layout, ModelWeights, WeightName};
use model::{AdapterParameters, Decoder, ModelConfig, Parameters, compute_dtype};
use tensor::Device;
use tokenizer::Tokenizer;

use super::RECIPE_FILE;
use super::saved::{Inherited, SavedState};
use super::storage::read_factors;
use crate::error::TrainError;
use crate::recipe::{Recipe, Start};
use crate::trainer::Trainer;

/// Runs that may start from one another in a row.
const MAX_CHAIN: usize = 64;

/// The weights that a run begins with.
fn initial_parameters(recipe: &Recipe, tokenizer: &Tokenizer) -> Result<Parameters, TrainError> {
    match &recipe.start {
        Start::Random(shape) => {
            let config = shape.config(tokenizer.bos_id(), tokenizer.eos_id())?;
            Ok(Parameters::random(&config, recipe.seed))
        }
        Start::Model(dir) => {
            let model = ModelDir::open(dir)?;
            let config = ModelConfig::new(model.config().clone())?;
            config.check_trainable()?;
            check_writable(&model)?;
            read_parameters(&config, model.weights())
        }
        Start::Run(dir) => latest_parameters(dir),
    }
}

/// What a run trains, as the trainer has it.
pub(super) enum Beginning {
    Model(Parameters),
    /// The adapter, and the model beside which it is trained.
    Adapter(AdapterParameters, Box<Decoder>),
}

impl Beginning {
    /// The configuration of the model.
    pub(super) fn config(&self) -> &ModelConfig {
        match self {
            Self::Model(parameters) => parameters.config(),
            Self::Adapter(factors, _) => factors.config(),
        }
    }

    pub(super) fn trainer(self, recipe: &Recipe, device: Device) -> Trainer {
        let (settings, max_tokens) = (recipe.optimizer, recipe.micro_batch_tokens());
        match self {
            Self::Model(parameters) => {
                let dtype = compute_dtype(recipe.dtype);
                Trainer::new(device, parameters, dtype, settings, max_tokens)
            }
            Self::Adapter(factors, decoder) => {
                Trainer::of_adapter(device, *decoder, factors, settings, max_tokens)
            }
        }
    }
}

/// What a run trains: from the beginning, or as its checkpoint has it.
pub(super) fn beginning(
    recipe: &Recipe,
    tokenizer: &Tokenizer,
    checkpoint: Option<&Checkpoint>,
    device: &Device,
) -> Result<Beginning, TrainError> {
    let Some(adapter) = &recipe.adapter else {
        return Ok(Beginning::Model(match checkpoint {
            Some(checkpoint) => checkpoint_parameters(checkpoint, recipe)?,
            None => initial_parameters(recipe, tokenizer)?,
        }));
    };
    let Start::Model(dir) = &recipe.start else { unreachable!("a recipe is checked") };
    let (model, settings) = (ModelDir::open(dir)?, adapter.settings());
    let config = ModelConfig::new(model.config().clone())?;
    settings.check(&config)?;
    let mut factors = AdapterParameters::random(&config, &settings, recipe.seed);
    if let Some(checkpoint) = checkpoint {
        let saved = SavedState::read(checkpoint.state(), checkpoint.dir())?.config()?;
        if saved.as_ref() != Some(&config) {
            let [got, expected] =
                [Some(&config), saved.as_ref()].map(|of| format!("{:?}", of.map(|of| &**of)));
            let path = checkpoint.dir().to_owned();
            let field = "configuration of start.model";
            return Err(TrainError::Checkpoint { path, field, got, expected });
        }
        read_factors(checkpoint, &mut factors)?;
    }
    let dtype = compute_dtype(recipe.dtype);
    let decoder = Decoder::load_frozen(device, &config, dtype, model.weights())?;
    Ok(Beginning::Adapter(factors, Box::new(decoder)))
}

/// Whether the model that training makes could be written: known before the first step, not after the last.
fn check_writable(model: &ModelDir) -> Result<(), TrainError> {
    let refused = |setting| FormatError::NotInLayout {
        path: model.dir().to_owned(),
        setting,
        layout: Layout::HuggingFace.title(),
    };
    to_hf_json(model.config()).map(|_| ()).map_err(|setting| refused(setting).into())
}

fn read_parameters(config: &ModelConfig, weights: &ModelWeights) -> Result<Parameters, TrainError> {
    let mut parameters = Parameters::zeroed(config);
    for name in WeightName::all(config) {
        let weight = weights.weight(name, config)?;
        if !weight.dtype().is_plain() {
            return Err(weights.quantised(name, weight.dtype()).into());
        }
        weight.read_f32(parameters.weight_mut(name));
    }
    Ok(parameters)
}

/// The f32 weights of a checkpoint of a run of this recipe, with the configuration that they were trained with.
fn checkpoint_parameters(
    checkpoint: &Checkpoint,
    recipe: &Recipe,
) -> Result<Parameters, TrainError> {
    if recipe.adapter.is_some() {
        return Err(TrainError::Setting {
            key: "start.run",
            got: format!("{}, of a run that trains an adapter", checkpoint.dir().display()),
            expected: "a run that trains a model, or start.model: `galerne model merge` makes one"
                .to_owned(),
        });
    }
    let config = match SavedState::read(checkpoint.state(), checkpoint.dir())?.config()? {
        Some(config) => config,
        // Format 1: as what the run began with says it now.
        None => starting_config(recipe)?,
    };
    config.check_trainable()?;
    let weights = ModelWeights::new(checkpoint.model()?, Layout::HuggingFace);
    // Before memory is taken for what the state says.
    weights.check(&config)?;
    read_parameters(&config, &weights)
}

/// The f32 weights of a run's last checkpoint.
///
/// # Errors
/// When the folder is no run, has no checkpoint, or is damaged.
pub fn latest_parameters(dir: &Path) -> Result<Parameters, TrainError> {
    let path = dir.join(RECIPE_FILE);
    if !path.is_file() {
        return Err(TrainError::NotARun { path: dir.to_owned() });
    }
    let recipe = Recipe::read(&path)?;
    let checkpoint = checkpoint::latest(dir)?.ok_or_else(|| TrainError::Checkpoint {
        path: dir.to_owned(),
        field: "LATEST",
        got: "nothing".to_owned(),
        expected: "a checkpoint".to_owned(),
    })?;
    checkpoint_parameters(&checkpoint, &recipe)
}

/// The configuration of a recipe's model, followed back to where it is written down: a model, a run's last checkpoint, or a
/// recipe.
///
/// # Errors
/// When a file on the way cannot be read, or runs start from one another in a circle.
pub fn starting_config(recipe: &Recipe) -> Result<ModelConfig, TrainError> {
    trace_back(recipe, |recipe| match &recipe.start {
        Start::Random(shape) => {
            let tokenizer = Tokenizer::open(&recipe.data.tokenizer)?;
            shape.config(tokenizer.bos_id(), tokenizer.eos_id()).map(Some)
        }
        Start::Model(dir) => Ok(Some(ModelConfig::new(ModelDir::open(dir)?.config().clone())?)),
        Start::Run(dir) => match checkpoint::latest_state(dir)? {
            Some(state) => SavedState::read(&state, dir)?.config(),
            None => Ok(None),
        },
    })
}

/// What a run has of the model that its weights come from; nothing where they began as random ones.
///
/// # Errors
/// When a file on the way cannot be read, or runs start from one another in a circle.
pub(super) fn inherited(recipe: &Recipe) -> Result<Inherited, TrainError> {
    trace_back(recipe, |recipe| match &recipe.start {
        Start::Random(_) => Ok(Some(Inherited::default())),
        Start::Model(dir) => {
            let model = ModelDir::open(dir)?;
            let licence = licence_of(&model)?.map(|licence| licence.name);
            let data_sheet_sha256 =
                model.lineage().and_then(|known| known.data_sheet_sha256.clone());
            Ok(Some(Inherited { licence, data_sheet_sha256 }))
        }
        Start::Run(dir) => match checkpoint::latest_state(dir)? {
            Some(state) => Ok(SavedState::read(&state, dir)?.inherited),
            None => Ok(None),
        },
    })
}

/// Asks a recipe, then those of the runs that start from one another, until one has the answer; one that starts from no run has it.
fn trace_back<T>(
    recipe: &Recipe,
    answer: impl Fn(&Recipe) -> Result<Option<T>, TrainError>,
) -> Result<T, TrainError> {
    let mut recipe = recipe.clone();
    for _ in 0..MAX_CHAIN {
        if let Some(answer) = answer(&recipe)? {
            return Ok(answer);
        }
        let Start::Run(dir) = &recipe.start else {
            unreachable!("the first recipe has the answer")
        };
        recipe = Recipe::read(&dir.join(RECIPE_FILE))?;
    }
    Err(TrainError::Setting {
        key: "start.run",
        got: "a longer chain".to_owned(),
        expected: format!("at most {MAX_CHAIN} runs that start from one another"),
    })
}
