//! `galerne bench growth`.

use std::time::SystemTime;

use bench::{GrowthReport, Machine, inference_growth, training_growth};

use super::{Args, inference};
use crate::context::{Context, Form};
use crate::open_model::OpenModel;
use crate::table::utc_minute;

/// Shortest prompt and context, tokens.
const FIRST_LEN: usize = 512;

/// Measures, rewrites the document that is named, and prints the laws.
///
/// # Errors
/// When the model cannot be used, its context is too short, or the document cannot be written.
pub(super) fn measure(args: &Args, machine: Machine, context: &Context) -> anyhow::Result<()> {
    let device = context.device()?;
    let value = inference::model_value(args, context)?;
    let OpenModel { name, decoder, .. } = OpenModel::open(&value, &args.load, context)?;
    let (limit, least) = (decoder.config().context_len, 2 * FIRST_LEN);
    anyhow::ensure!(
        limit >= least,
        "the context of model `{name}` is {limit} tokens, expected at least {least} (two lengths)"
    );
    let say = |what: &str| context.say(what);
    let mut growth = inference_growth(&device, &decoder, FIRST_LEN, say);
    drop(decoder);
    growth.extend(training_growth(&device, say)?);
    let report = GrowthReport { machine, model: name, growth };
    if let Some(path) = &args.document {
        report.write(path, &utc_minute(SystemTime::now()), &command(args, context))?;
    }
    match context.form() {
        Form::Json => context.print_json(&report),
        Form::Text => context.print(&report.to_text()),
    }
}

/// The command as a reader would type it.
fn command(args: &Args, context: &Context) -> String {
    let mut text = "galerne bench growth".to_owned();
    let weights = args.weights.map(|weights| weights.name().to_owned());
    let quantize = args.load.quantize.map(|kind| kind.to_string());
    let threads = Some(context.n_threads().to_string());
    let document = args.document.as_ref().map(|path| path.display().to_string());
    for (option, value) in [
        ("--model", args.model.clone()),
        ("--shape", args.shape.clone()),
        ("--weights", weights),
        ("--quantize", quantize),
        ("--threads", threads),
        ("--document", document),
    ] {
        if let Some(value) = value {
            text += &format!(" {option} {value}");
        }
    }
    text
}
