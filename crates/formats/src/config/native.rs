//! Mistral's `params.json`, beside weights in the native layout.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::hf::{has_yarn_magnitude, magnitude, shortest_pattern};
use super::{DecoderConfig, Experts, QueryScaling, ReadConfig, Rope, RopeScaling, WeightDtype};
use crate::FormatError;
use crate::fields::{Fields, same};

/// Name of the file.
pub(crate) const PARAMS_FILE: &str = "params.json";

/// Largest file that is read; real ones have a KiB.
const MAX_PARAMS_BYTES: u64 = 1 << 20;

/// What the files say nothing of, so that the reader must know it.
const BOS_ID: u32 = 1;
const EOS_ID: u32 = 2;

/// Context of a model whose file names none, as in Mistral's own runtime.
const DEFAULT_CONTEXT_LEN: usize = 128_000;

/// Keys without effect on what the model computes at inference.
const WITHOUT_EFFECT: [&str; 4] = ["max_batch_size", "max_seq_len", "model_type", "activation"];

/// Other parts of a model, which are not read.
const OTHER_PARTS: [&str; 2] = ["vision_encoder", "multimodal"];

/// Reads `params.json` of a folder. The decoder's `dtype` is bf16, which the file does not say.
///
/// # Errors
/// When the file is absent, is not JSON, or describes something that this family does not compute; the error names
/// the field.
pub(crate) fn read_params(dir: &Path) -> Result<ReadConfig, FormatError> {
    let path = dir.join(PARAMS_FILE);
    let bytes = crate::durable::read_bounded(&path, MAX_PARAMS_BYTES)?;
    parse_at(&path, &bytes)
}

/// Reads the content of a `params.json`; `path` is for messages.
///
/// # Errors
/// As [`read_params`].
pub(super) fn parse_at(path: &Path, bytes: &[u8]) -> Result<ReadConfig, FormatError> {
    let object: Map<String, Value> =
        serde_json::from_slice(bytes).map_err(FormatError::json(path))?;
    let mut fields = Fields::new(path, "", object);
    require_computation(&mut fields)?;
    let n_heads = fields.count("n_heads", 1, 4096)?;
    let n_kv_heads = fields.optional_count("n_kv_heads", 1, n_heads)?.unwrap_or(n_heads);
    let head_dim = fields.count("head_dim", 2, 1024)?;
    DecoderConfig::check_heads(path, [n_heads, n_kv_heads, head_dim], ["n_kv_heads", "head_dim"])?;
    let n_layers = fields.count("n_layers", 1, 1024)?;
    let vocab_size = fields.count("vocab_size", 3, 1 << 22)?;
    let sliding_windows = read_sliding_windows(&mut fields, n_layers)?;
    let context_len = read_context_len(&mut fields)?;
    let scaling = read_yarn(&mut fields)?;
    let query_scaling = read_query_scaling(&mut fields, &scaling)?;
    let decoder = DecoderConfig {
        vocab_size,
        hidden_dim: fields.count("dim", 1, 1 << 17)?,
        n_layers,
        n_heads,
        n_kv_heads,
        head_dim,
        ffn_dim: fields.count("hidden_dim", 1, 1 << 20)?,
        context_len,
        rope: Rope { theta: read_theta(&mut fields, &sliding_windows)?, scaling },
        query_scaling,
        rms_norm_eps: fields.number("norm_eps", 1e-12, 0.1)?.unwrap_or(1e-5),
        tied_embeddings: fields.flag("tied_embeddings")?.unwrap_or(false),
        experts: read_experts(&mut fields)?,
        sliding_windows,
        bos_id: Some(BOS_ID),
        eos_ids: vec![EOS_ID],
        dtype: WeightDtype::Bf16,
    };
    if decoder.sliding_windows.len() > 1
        && (decoder.experts.is_some() || decoder.query_scaling.is_some())
    {
        let got = format!("a pattern of {}", decoder.sliding_windows.len());
        let expected = "one window for all layers beside moe or llama_4_scaling".to_owned();
        return Err(fields.bad("sliding_window", got, expected));
    }
    check_quantization(&mut fields)?;
    let mut text_part_of = None;
    for part in OTHER_PARTS {
        text_part_of =
            fields.take_present(part).map(|_| format!("a model with {part}")).or(text_part_of);
    }
    for key in WITHOUT_EFFECT {
        fields.take(key);
    }
    fields.refuse_the_rest("it is unknown and could change the computation")?;
    Ok(ReadConfig { decoder, text_part_of })
}

/// Settings with the one value that this family computes with.
fn require_computation(fields: &mut Fields<'_>) -> Result<(), FormatError> {
    let required = [
        ("model_type", json!("transformer"), "the family is a transformer"),
        ("activation", json!("silu"), "the feed-forward block is SwiGLU"),
        ("use_biases", json!(false), "projections have no bias"),
        ("causal", json!(true), "attention is causal"),
    ];
    for (field, value, reason) in required {
        match fields.take_present(field) {
            None => {}
            Some(got) if same(&got, &value) => {}
            Some(got) => return Err(fields.unsupported(field, got, reason)),
        }
    }
    Ok(())
}

/// A width for all layers, or a pattern repeated over them in which null is no window. Old files name it with an underscore.
fn read_sliding_windows(
    fields: &mut Fields<'_>,
    n_layers: usize,
) -> Result<Vec<Option<usize>>, FormatError> {
    let old_name = fields.take_present("_sliding_window");
    let Some(found) = fields.take_present("sliding_window").or(old_name) else {
        return Ok(Vec::new());
    };
    let pattern = match &found {
        Value::Array(pattern) if !pattern.is_empty() && pattern.len() <= n_layers => pattern,
        Value::Array(_) => {
            let expected = format!("a pattern of 1 to {n_layers} layers");
            return Err(fields.bad("sliding_window", found, expected));
        }
        one => std::slice::from_ref(one),
    };
    let width_of = |value: &Value| match value {
        Value::Null => Some(None),
        other => {
            let width = other.as_u64().and_then(|width| usize::try_from(width).ok());
            width.filter(|width| (1..=1 << 28).contains(width)).map(Some)
        }
    };
    let Some(widths) = pattern.iter().map(width_of).collect::<Option<Vec<_>>>() else {
        let expected = "whole numbers 1..=268435456 or null".to_owned();
        return Err(fields.bad("sliding_window", found, expected));
    };
    let mut distinct: Vec<usize> = widths.iter().copied().flatten().collect();
    distinct.dedup();
    if distinct.len() > 1 {
        let expected = "one width in all layers that have a window".to_owned();
        return Err(fields.bad("sliding_window", found, expected));
    }
    Ok(shortest_pattern((0..n_layers).map(|layer_idx| widths[layer_idx % widths.len()]).collect()))
}

/// The first files had no base: those of the first model, which has a window, mean 1e4; a later one would be a guess.
fn read_theta(
    fields: &mut Fields<'_>,
    sliding_windows: &[Option<usize>],
) -> Result<f64, FormatError> {
    match fields.number("rope_theta", 1.0, 1e12)? {
        Some(theta) => Ok(theta),
        None if sliding_windows == [Some(4096)] => Ok(1e4),
        None => {
            let expected =
                "a number; only a file with sliding_window 4096 may leave it out".to_owned();
            Err(fields.bad("rope_theta", "missing", expected))
        }
    }
}

fn read_context_len(fields: &mut Fields<'_>) -> Result<usize, FormatError> {
    let named = fields.optional_count("max_position_embeddings", 1, 1 << 28)?;
    let older = fields.optional_count("max_seq_len", 1, 1 << 28)?;
    Ok(named.or(older).unwrap_or(DEFAULT_CONTEXT_LEN))
}

/// The nested object of a key, if it is there.
fn object_of<'a>(fields: &mut Fields<'a>, key: &'a str) -> Result<Option<Fields<'a>>, FormatError> {
    match fields.take_present(key) {
        None => Ok(None),
        Some(Value::Object(object)) => Ok(Some(Fields::new(fields.path(), key, object))),
        Some(other) => Err(fields.bad(key, other, "an object or null".to_owned())),
    }
}

fn read_yarn(fields: &mut Fields<'_>) -> Result<RopeScaling, FormatError> {
    let Some(mut yarn) = object_of(fields, "yarn")? else { return Ok(RopeScaling::None) };
    let factor = yarn.number("factor", 1e-3, 1e6)?;
    let factor =
        factor.ok_or_else(|| yarn.bad("factor", "missing", "a number 0.001..=1e6".to_owned()))?;
    // `apply_scale` is YaRN's factor of queries and keys.
    let has_magnitude = yarn.flag("apply_scale")?.unwrap_or(true);
    let scaling = RopeScaling::Yarn {
        factor,
        beta_fast: yarn.number("beta", 1e-3, 1e6)?.unwrap_or(32.0),
        beta_slow: yarn.number("alpha", 1e-3, 1e6)?.unwrap_or(1.0),
        original_context_len: yarn.count("original_max_position_embeddings", 1, 1 << 28)?,
        attention_factor: if has_magnitude { magnitude(factor, 1.0) } else { 1.0 },
        is_truncated: true,
    };
    yarn.refuse_the_rest("it is unknown and could change the rotation")?;
    Ok(scaling)
}

fn read_query_scaling(
    fields: &mut Fields<'_>,
    scaling: &RopeScaling,
) -> Result<Option<QueryScaling>, FormatError> {
    let Some(mut nested) = object_of(fields, "llama_4_scaling")? else { return Ok(None) };
    let beta = nested.number("beta", 0.0, 1e3)?;
    let beta = beta.ok_or_else(|| nested.bad("beta", "missing", "a number 0..=1e3".to_owned()))?;
    let original_context_len = nested.count("original_max_position_embeddings", 1, 1 << 28)?;
    match scaling {
        RopeScaling::Yarn { original_context_len: yarn, .. } if *yarn == original_context_len => {}
        _ => {
            let expected = "the same number in yarn".to_owned();
            let field = "original_max_position_embeddings";
            return Err(nested.bad(field, original_context_len, expected));
        }
    }
    nested.refuse_the_rest("it is unknown and could change the queries")?;
    Ok(Some(QueryScaling { beta, original_context_len }))
}

fn read_experts(fields: &mut Fields<'_>) -> Result<Option<Experts>, FormatError> {
    let Some(mut moe) = object_of(fields, "moe")? else { return Ok(None) };
    let n_experts = moe.count("num_experts", 1, 1024)?;
    let n_active = moe.count("num_experts_per_tok", 1, n_experts)?;
    moe.refuse_the_rest("experts are routed as in Mixtral")?;
    Ok(Some(Experts { n_experts, n_active }))
}

/// Which matrices are in 8 bits (E4M3), with a scale for each tensor, is in their own types.
fn check_quantization(fields: &mut Fields<'_>) -> Result<(), FormatError> {
    let Some(mut nested) = object_of(fields, "quantization")? else { return Ok(()) };
    let reason = "weights of 8 bits are read with one scale for each tensor (fp8_e4m3)";
    match nested.take_present("qformat_weight") {
        Some(format) if format == json!("fp8_e4m3") => {}
        Some(other) => return Err(nested.unsupported("qformat_weight", other, reason)),
        None => {
            return Err(nested.bad("qformat_weight", "missing", "\"fp8_e4m3\"".to_owned()));
        }
    }
    // The scheme of activations is for products in 8 bits, which are not computed here.
    nested.take("qscheme_act");
    nested.refuse_the_rest(reason)
}

/// The content of `params.json` for a model.
///
/// # Errors
/// Names the setting that the native layout has no key for.
pub(crate) fn to_native_json(config: &DecoderConfig) -> Result<Value, &'static str> {
    let mut object = json!({
        "dim": config.hidden_dim,
        "n_layers": config.n_layers,
        "head_dim": config.head_dim,
        "hidden_dim": config.ffn_dim,
        "n_heads": config.n_heads,
        "n_kv_heads": config.n_kv_heads,
        "norm_eps": config.rms_norm_eps,
        "vocab_size": config.vocab_size,
        "rope_theta": config.rope.theta,
        "max_position_embeddings": config.context_len,
    });
    if config.tied_embeddings {
        object["tied_embeddings"] = json!(true);
    }
    match config.sliding_windows.as_slice() {
        [] => {}
        [Some(window)] => object["sliding_window"] = json!(window),
        pattern => object["sliding_window"] = json!(pattern),
    }
    match config.rope.scaling {
        RopeScaling::None => {}
        RopeScaling::Linear { .. } => return Err("linear rope scaling"),
        RopeScaling::Llama3 { .. } => return Err("llama3 rope scaling"),
        RopeScaling::Divided { .. } => return Err("a divisor for each rotary frequency"),
        RopeScaling::Yarn {
            factor,
            beta_fast,
            beta_slow,
            original_context_len,
            attention_factor,
            is_truncated,
        } => {
            let has_magnitude = has_yarn_magnitude(factor, attention_factor, is_truncated)?;
            object["yarn"] = json!({
                "factor": factor,
                "original_max_position_embeddings": original_context_len,
                "beta": beta_fast,
                "alpha": beta_slow,
                "apply_scale": has_magnitude,
            });
        }
    }
    if let Some(scaling) = config.query_scaling {
        object["llama_4_scaling"] = json!({
            "beta": scaling.beta,
            "original_max_position_embeddings": scaling.original_context_len,
        });
    }
    if let Some(experts) = config.experts {
        object["moe"] = json!({
            "num_experts": experts.n_experts,
            "num_experts_per_tok": experts.n_active,
        });
    }
    // Which order a value keeps depends on what else the program is built with.
    object.sort_all_objects();
    Ok(object)
}
