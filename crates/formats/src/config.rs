//! The shape of a decoder, read from and written to Hugging Face `config.json`.
//!
//! Each key of the file is either translated, or known to have no effect on the computation, or must have the one value
//! that this family computes with. A key that is none of these is refused by name: a setting that is silently dropped
//! is a model that silently answers something else.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::FormatError;

mod fields;

use fields::Fields;

/// Number type of stored weights; `f32` and `bf16` in our own files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WeightDtype {
    /// 32-bit float.
    F32,
    /// The upper half of a 32-bit float.
    Bf16,
}

impl WeightDtype {
    /// Bytes of one number.
    #[must_use]
    pub const fn n_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }

    /// The name in `config.json`.
    const fn hf_name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::Bf16 => "bfloat16",
        }
    }
}

/// The shape and constants of a decoder of the Mistral and Llama family: RMSNorm, rotary positions, grouped-query
/// attention, SwiGLU, no bias.
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderConfig {
    /// Number of token ids.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_dim: usize,
    /// Number of layers.
    pub n_layers: usize,
    /// Number of query heads.
    pub n_heads: usize,
    /// Number of key and value heads; divides `n_heads`.
    pub n_kv_heads: usize,
    /// Width of one head; even.
    pub head_dim: usize,
    /// Width of the feed-forward block.
    pub ffn_dim: usize,
    /// Most positions the model was made for.
    pub context_len: usize,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Added to the mean square inside the norm's square root.
    pub rms_norm_eps: f64,
    /// Whether the output head is the embedding.
    pub tied_embeddings: bool,
    /// A position sees this many positions, itself included; `None` for all before it.
    pub sliding_window: Option<usize>,
    /// Token put before a text.
    pub bos_id: Option<u32>,
    /// Tokens that end an answer.
    pub eos_ids: Vec<u32>,
    /// Number type of the stored weights.
    pub dtype: WeightDtype,
}

impl DecoderConfig {
    /// Number of parameters; a tied head counts once.
    #[must_use]
    pub fn n_parameters(&self) -> u64 {
        let n_of = |name: crate::WeightName| -> u64 {
            name.shape(self).iter().map(|&axis| axis as u64).product()
        };
        crate::WeightName::all(self).into_iter().map(n_of).sum()
    }
}

/// Largest `config.json` that is read; real ones have a few KiB.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// Reads `config.json` of a model directory.
///
/// # Errors
/// When the file is absent, is not JSON, or describes something that this family does not compute; the error names
/// the field.
pub fn read_config(dir: &Path) -> Result<DecoderConfig, FormatError> {
    let path = dir.join("config.json");
    let bytes = crate::durable::read_bounded(&path, MAX_CONFIG_BYTES)?;
    parse_at(&path, &bytes)
}

/// Reads the content of a `config.json`.
///
/// # Errors
/// As [`read_config`].
pub fn parse_config(bytes: &[u8]) -> Result<DecoderConfig, FormatError> {
    parse_at(Path::new("config.json"), bytes)
}

/// Keys without effect on what the model computes at inference. `torch_dtype`, `dtype` and the keys that are
/// translated are not in it.
const WITHOUT_EFFECT: [&str; 24] = [
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_name_or_path",
    "architectures",
    "attention_dropout",
    "chunk_size_feed_forward",
    "finetuning_task",
    "id2label",
    "initializer_range",
    "label2id",
    "license",
    "max_sequence_length",
    "model_type",
    "output_attentions",
    "output_hidden_states",
    "pad_token_id",
    "prefix",
    "problem_type",
    "return_dict",
    "task_specific_params",
    "transformers_version",
    "unsloth_version",
    "use_cache",
    "use_return_dict",
];

fn parse_at(path: &Path, bytes: &[u8]) -> Result<DecoderConfig, FormatError> {
    let object: Map<String, Value> =
        serde_json::from_slice(bytes).map_err(FormatError::json(path))?;
    let mut fields = Fields::new(path, "", object);
    let is_mistral = read_architecture(&mut fields)?;
    require_computation(&mut fields)?;
    let n_heads = fields.count("num_attention_heads", 1, 4096)?;
    let hidden_dim = fields.count("hidden_size", 1, 1 << 17)?;
    // Absent, the key means one head per query head in Llama files and 8 in Mistral files.
    let default_kv_heads = if is_mistral { 8 } else { n_heads };
    let n_kv_heads =
        fields.optional_count("num_key_value_heads", 1, n_heads)?.unwrap_or(default_kv_heads);
    if n_heads % n_kv_heads != 0 {
        return Err(fields.bad(
            "num_key_value_heads",
            n_kv_heads,
            format!("a divisor of num_attention_heads = {n_heads}"),
        ));
    }
    let head_dim = match fields.optional_count("head_dim", 2, 1024)? {
        Some(head_dim) => head_dim,
        None if hidden_dim % n_heads == 0 => hidden_dim / n_heads,
        None => {
            let expected = format!("a multiple of num_attention_heads = {n_heads}, or head_dim");
            return Err(fields.bad("hidden_size", hidden_dim, expected));
        }
    };
    if head_dim % 2 != 0 || !(2..=1024).contains(&head_dim) {
        return Err(fields.bad("head_dim", head_dim, "an even number from 2 to 1024".to_owned()));
    }
    let vocab_size = fields.count("vocab_size", 1, 1 << 22)?;
    let config = DecoderConfig {
        vocab_size,
        hidden_dim,
        n_layers: fields.count("num_hidden_layers", 1, 1024)?,
        n_heads,
        n_kv_heads,
        head_dim,
        ffn_dim: fields.count("intermediate_size", 1, 1 << 20)?,
        context_len: fields.count("max_position_embeddings", 1, 1 << 28)?,
        rope_theta: read_rope_theta(&mut fields)?,
        rms_norm_eps: fields.number("rms_norm_eps", 1e-12, 0.1)?.unwrap_or(1e-6),
        tied_embeddings: fields.flag("tie_word_embeddings")?.unwrap_or(false),
        sliding_window: read_sliding_window(&mut fields, is_mistral)?,
        bos_id: read_bos(&mut fields, vocab_size)?,
        eos_ids: read_eos(&mut fields, vocab_size)?,
        dtype: read_dtype(&mut fields)?,
    };
    for key in WITHOUT_EFFECT {
        fields.take(key);
    }
    fields.refuse_the_rest("it is unknown and could change the computation")?;
    Ok(config)
}

/// Returns whether the file is Mistral's; else it is Llama's, whose defaults differ.
fn read_architecture(fields: &mut Fields<'_>) -> Result<bool, FormatError> {
    let expected = || "\"mistral\" or \"llama\"".to_owned();
    let is_mistral = match fields.take_present("model_type") {
        Some(Value::String(kind)) if kind == "mistral" => true,
        Some(Value::String(kind)) if kind == "llama" => false,
        Some(other) => return Err(fields.bad("model_type", other, expected())),
        None => return Err(fields.bad("model_type", "missing", expected())),
    };
    let wanted = if is_mistral { "MistralForCausalLM" } else { "LlamaForCausalLM" };
    match fields.take_present("architectures") {
        None => Ok(is_mistral),
        Some(names) if names == json!([wanted]) => Ok(is_mistral),
        Some(other) => Err(fields.bad("architectures", other, format!("[\"{wanted}\"]"))),
    }
}

/// Settings that change the computation and have one value that this family computes with.
fn require_computation(fields: &mut Fields<'_>) -> Result<(), FormatError> {
    let required = [
        ("hidden_act", json!("silu"), "the feed-forward block is SwiGLU"),
        ("attention_bias", json!(false), "projections have no bias"),
        ("mlp_bias", json!(false), "projections have no bias"),
        ("partial_rotary_factor", json!(1.0), "every dimension of a head is rotated"),
        ("pretraining_tp", json!(1), "matrices are not computed in slices"),
        ("is_encoder_decoder", json!(false), "the family is decoder-only"),
        ("is_decoder", json!(false), "the setting is for encoders used as decoders"),
        ("add_cross_attention", json!(false), "the family has no cross attention"),
        ("tie_encoder_decoder", json!(false), "the family is decoder-only"),
    ];
    for (field, value, reason) in required {
        match fields.take_present(field) {
            None => {}
            Some(got) if fields::same(&got, &value) => {}
            Some(got) => return Err(fields.unsupported(field, got, reason)),
        }
    }
    Ok(())
}

/// `rope_parameters` is the nesting of transformers 5; before, `rope_theta` stood at the top.
fn read_rope_theta(fields: &mut Fields<'_>) -> Result<f64, FormatError> {
    let mut theta = fields.number("rope_theta", 1.0, 1e12)?;
    for key in ["rope_scaling", "rope_parameters"] {
        let Some(value) = fields.take_present(key) else { continue };
        let Value::Object(object) = value else {
            return Err(fields.bad(key, value, "an object or null".to_owned()));
        };
        let mut nested = Fields::new(fields.path(), key, object);
        for kind_key in ["rope_type", "type"] {
            match nested.take_present(kind_key) {
                None => {}
                Some(kind) if kind == json!("default") => {}
                Some(kind) => {
                    let reason = "positions are rotated without scaling";
                    return Err(nested.unsupported(kind_key, kind, reason));
                }
            }
        }
        match nested.take_present("partial_rotary_factor") {
            None => {}
            Some(factor) if fields::same(&factor, &json!(1.0)) => {}
            Some(factor) => {
                let reason = "every dimension of a head is rotated";
                return Err(nested.unsupported("partial_rotary_factor", factor, reason));
            }
        }
        let nested_theta = nested.number("rope_theta", 1.0, 1e12)?;
        nested.refuse_the_rest("positions are rotated without scaling")?;
        if let (Some(top), Some(inner)) = (theta, nested_theta)
            && top != inner
        {
            return Err(nested.bad("rope_theta", inner, format!("rope_theta = {top}, as above")));
        }
        theta = theta.or(nested_theta);
    }
    Ok(theta.unwrap_or(1e4))
}

/// In a Mistral file an absent window is 4096, as transformers has it, and null is none. A Llama file has none.
fn read_sliding_window(
    fields: &mut Fields<'_>,
    is_mistral: bool,
) -> Result<Option<usize>, FormatError> {
    if !is_mistral {
        return match fields.take_present("sliding_window") {
            None => Ok(None),
            Some(got) => {
                let reason = "the Llama architecture has no sliding window";
                Err(fields.unsupported("sliding_window", got, reason))
            }
        };
    }
    if !fields.has("sliding_window") {
        return Ok(Some(4096));
    }
    if let Some(Value::Array(_)) = fields.peek("sliding_window") {
        let got = fields.take("sliding_window").unwrap_or(Value::Null);
        return Err(fields.unsupported("sliding_window", got, "every layer has the same window"));
    }
    fields.optional_count("sliding_window", 1, 1 << 28)
}

/// Absent ids are 1 and 2, as transformers has them; null is none.
fn read_bos(fields: &mut Fields<'_>, vocab_size: usize) -> Result<Option<u32>, FormatError> {
    if !fields.has("bos_token_id") {
        return Ok((vocab_size > 1).then_some(1));
    }
    match fields.take_present("bos_token_id") {
        None => Ok(None),
        Some(value) => fields.token_id("bos_token_id", &value, vocab_size).map(Some),
    }
}

fn read_eos(fields: &mut Fields<'_>, vocab_size: usize) -> Result<Vec<u32>, FormatError> {
    if !fields.has("eos_token_id") {
        return Ok(if vocab_size > 2 { vec![2] } else { Vec::new() });
    }
    match fields.take_present("eos_token_id") {
        None => Ok(Vec::new()),
        Some(Value::Array(values)) if values.len() <= 64 => {
            values.iter().map(|value| fields.token_id("eos_token_id", value, vocab_size)).collect()
        }
        Some(Value::Array(values)) => {
            let got = format!("{} ids", values.len());
            Err(fields.bad("eos_token_id", got, "at most 64 ids".to_owned()))
        }
        Some(value) => Ok(vec![fields.token_id("eos_token_id", &value, vocab_size)?]),
    }
}

/// `dtype` is the name in transformers 5, `torch_dtype` before; without either, files hold f32.
fn read_dtype(fields: &mut Fields<'_>) -> Result<WeightDtype, FormatError> {
    let mut found = None;
    for key in ["torch_dtype", "dtype"] {
        let Some(value) = fields.take_present(key) else { continue };
        let dtype = match value.as_str().map(|name| name.strip_prefix("torch.").unwrap_or(name)) {
            Some("float32") => WeightDtype::F32,
            Some("bfloat16") => WeightDtype::Bf16,
            _ => {
                return Err(fields.bad(key, value, "\"float32\" or \"bfloat16\"".to_owned()));
            }
        };
        if found.is_some_and(|other| other != dtype) {
            return Err(fields.bad(key, value, "the type that torch_dtype names".to_owned()));
        }
        found = Some(dtype);
    }
    Ok(found.unwrap_or(WeightDtype::F32))
}

/// The content of `config.json` for a model, as transformers loads it (`MistralForCausalLM`).
///
/// Both the new (`dtype`, `rope_parameters`) and the old names (`torch_dtype`, `rope_theta`) are written, with equal
/// values, so that older readers do not fall back to a default.
#[must_use]
pub fn to_hf_json(config: &DecoderConfig) -> Value {
    let eos = match config.eos_ids.as_slice() {
        [] => Value::Null,
        [one] => json!(one),
        many => json!(many),
    };
    json!({
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_dim,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.ffn_dim,
        "max_position_embeddings": config.context_len,
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "rms_norm_eps": config.rms_norm_eps,
        "tie_word_embeddings": config.tied_embeddings,
        "sliding_window": config.sliding_window,
        "bos_token_id": config.bos_id,
        "eos_token_id": eos,
        "pad_token_id": null,
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": true,
        "dtype": config.dtype.hf_name(),
        "torch_dtype": config.dtype.hf_name(),
    })
}

#[cfg(test)]
pub(crate) mod tests;
