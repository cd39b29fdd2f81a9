//! What a run begins with: random weights, those of a model, or those of another run.

use std::path::{Path, PathBuf};

use formats::checkpoint;
use formats::model_dir::ModelDir;
use formats::{Layout, ModelWeights, WeightName};
use model::{ModelConfig, Parameters};
use tokenizer::Tokenizer;

use super::RECIPE_FILE;
use crate::error::TrainError;
use crate::recipe::{Recipe, Start};

/// Runs that may start from one another in a row.
const MAX_CHAIN: usize = 64;

/// The weights that a run begins with.
pub(super) fn initial_parameters(
    recipe: &Recipe,
    tokenizer: &Tokenizer,
) -> Result<Parameters, TrainError> {
    match &recipe.start {
        Start::Random(shape) => {
            let config = shape.config(tokenizer.bos_id(), tokenizer.eos_id())?;
            Ok(Parameters::random(&config, recipe.seed))
        }
        Start::Model(dir) => {
            let model = ModelDir::open(dir)?;
            let config = ModelConfig::new(model.config().clone())?;
            config.check_trainable()?;
            read_parameters(&config, model.weights())
        }
        Start::Run(dir) => latest_parameters(dir),
    }
}

fn read_parameters(config: &ModelConfig, weights: &ModelWeights) -> Result<Parameters, TrainError> {
    let mut parameters = Parameters::zeroed(config);
    for name in WeightName::all(config) {
        weights.weight(name, config)?.read_f32(parameters.weight_mut(name));
    }
    Ok(parameters)
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
    let config = starting_config(&recipe)?;
    read_parameters(&config, &ModelWeights::new(checkpoint.model()?, Layout::HuggingFace))
}

/// The configuration of a recipe's model, followed back to where it is written down.
///
/// # Errors
/// When a file on the way cannot be read, or runs start from one another in a circle.
pub fn starting_config(recipe: &Recipe) -> Result<ModelConfig, TrainError> {
    let first = first_recipe(recipe)?;
    match &first.start {
        Start::Random(shape) => {
            let tokenizer = Tokenizer::open(&first.data.tokenizer)?;
            shape.config(tokenizer.bos_id(), tokenizer.eos_id())
        }
        Start::Model(dir) => Ok(ModelConfig::new(ModelDir::open(dir)?.config().clone())?),
        Start::Run(_) => unreachable!("the first recipe starts from no run"),
    }
}

/// The folder of the model that a recipe's weights come from, followed back through the runs
/// between; `None` where they began as random ones.
///
/// # Errors
/// When a recipe on the way cannot be read, or runs start from one another in a circle.
pub fn starting_model(recipe: &Recipe) -> Result<Option<PathBuf>, TrainError> {
    match first_recipe(recipe)?.start {
        Start::Model(dir) => Ok(Some(dir)),
        Start::Random(_) | Start::Run(_) => Ok(None),
    }
}

/// The first of the recipes that start from one another's runs: its own start is no run.
fn first_recipe(recipe: &Recipe) -> Result<Recipe, TrainError> {
    let mut recipe = recipe.clone();
    for _ in 0..MAX_CHAIN {
        let Start::Run(dir) = &recipe.start else { return Ok(recipe) };
        recipe = Recipe::read(&dir.join(RECIPE_FILE))?;
    }
    Err(TrainError::Setting {
        key: "start.run",
        got: "a longer chain".to_owned(),
        expected: format!("at most {MAX_CHAIN} runs that start from one another"),
    })
}
