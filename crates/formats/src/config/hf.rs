//! Hugging Face `config.json`.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::{DecoderConfig, Experts, ReadConfig, WeightDtype};
use crate::FormatError;
use crate::fields::{Fields, same};
use crate::model_dir::CONFIG_FILE;

mod position;

mod write;

pub(crate) use position::{has_yarn_magnitude, magnitude};
pub use write::to_hf_json;

/// Largest `config.json` that is read; real ones have a few KiB.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// Reads `config.json` of a model directory.
///
/// # Errors
/// When the file is absent, is not JSON, or describes something that this family does not compute; the error names
/// the field.
pub(crate) fn read_config(dir: &Path) -> Result<ReadConfig, FormatError> {
    let path = dir.join(CONFIG_FILE);
    let bytes = crate::durable::read_bounded(&path, MAX_CONFIG_BYTES)?;
    parse_at(&path, &bytes)
}

/// Reads the content of a `config.json`.
///
/// # Errors
/// When it is not JSON, or describes something that this family does not compute; the error names the field.
pub fn parse_config(bytes: &[u8]) -> Result<ReadConfig, FormatError> {
    parse_at(Path::new(CONFIG_FILE), bytes)
}

/// Keys without effect on what the model computes at inference. `torch_dtype`, `dtype` and the keys that are
/// translated are not in it.
const WITHOUT_EFFECT: [&str; 27] = [
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
    "output_router_logits",
    "pad_token_id",
    "prefix",
    "problem_type",
    "return_dict",
    "router_aux_loss_coef",
    "router_jitter_noise",
    "task_specific_params",
    "transformers_version",
    "unsloth_version",
    "use_cache",
    "use_return_dict",
];

/// The kinds of decoder, which differ in what absent keys mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Llama,
    Mistral,
    Mixtral,
    Ministral,
    Ministral3,
}

impl Kind {
    const ALL: [Self; 5] =
        [Self::Llama, Self::Mistral, Self::Mixtral, Self::Ministral, Self::Ministral3];

    /// `model_type` and the class in `architectures`.
    const fn names(self) -> [&'static str; 2] {
        match self {
            Self::Llama => ["llama", "LlamaForCausalLM"],
            Self::Mistral => ["mistral", "MistralForCausalLM"],
            Self::Mixtral => ["mixtral", "MixtralForCausalLM"],
            Self::Ministral => ["ministral", "MinistralForCausalLM"],
            Self::Ministral3 => ["ministral3", "Ministral3ForCausalLM"],
        }
    }

    const fn default_theta(self) -> f64 {
        if let Self::Mixtral = self { 1e6 } else { 1e4 }
    }

    const fn default_eps(self) -> f64 {
        if let Self::Mixtral | Self::Ministral3 = self { 1e-5 } else { 1e-6 }
    }

    /// What an absent window means; null is none for all.
    const fn default_window(self) -> Option<usize> {
        if let Self::Mistral | Self::Ministral = self { Some(4096) } else { None }
    }
}

/// Models with other parts around a decoder, which stands in `text_config`.
const WITH_TEXT_PART: [&str; 2] = ["mistral3", "llava"];

fn parse_at(path: &Path, bytes: &[u8]) -> Result<ReadConfig, FormatError> {
    let mut object: Map<String, Value> =
        serde_json::from_slice(bytes).map_err(FormatError::json(path))?;
    let outer = object.get("model_type").and_then(Value::as_str).map(str::to_owned);
    let Some(outer) = outer.filter(|kind| WITH_TEXT_PART.contains(&kind.as_str())) else {
        check_quantization(path, object.remove("quantization_config"))?;
        let decoder = parse_decoder(Fields::new(path, "", object))?;
        return Ok(ReadConfig { decoder, text_part_of: None });
    };
    let Some(Value::Object(mut text)) = object.remove("text_config") else {
        let fields = Fields::new(path, "", object);
        return Err(fields.bad("text_config", "missing", "the decoder's configuration".to_owned()));
    };
    // What the text part does not say of itself, the whole says for it.
    for key in ["dtype", "torch_dtype", "tie_word_embeddings", "bos_token_id", "eos_token_id"] {
        if !text.contains_key(key)
            && let Some(value) = object.remove(key)
        {
            text.insert(key.to_owned(), value);
        }
    }
    let outer_quantization = object.remove("quantization_config");
    check_quantization(path, text.remove("quantization_config").or(outer_quantization))?;
    let decoder = parse_decoder(Fields::new(path, "text_config", text))?;
    Ok(ReadConfig { decoder, text_part_of: Some(outer) })
}

fn parse_decoder(mut fields: Fields<'_>) -> Result<DecoderConfig, FormatError> {
    let kind = read_kind(&mut fields)?;
    require_computation(&mut fields)?;
    let n_heads = fields.count("num_attention_heads", 1, 4096)?;
    let hidden_dim = fields.count("hidden_size", 1, 1 << 17)?;
    // Absent, the key means one head per query head in Llama files and 8 in Mistral's.
    let default_kv_heads = if kind == Kind::Llama { n_heads } else { 8 };
    let n_kv_heads =
        fields.optional_count("num_key_value_heads", 1, n_heads)?.unwrap_or(default_kv_heads);
    let head_dim = match fields.optional_count("head_dim", 2, 1024)? {
        Some(head_dim) => head_dim,
        None if hidden_dim % n_heads == 0 => hidden_dim / n_heads,
        None => {
            let expected = format!("a multiple of num_attention_heads = {n_heads}, or head_dim");
            return Err(fields.bad("hidden_size", hidden_dim, expected));
        }
    };
    let field_names = ["num_key_value_heads", "head_dim"];
    DecoderConfig::check_heads(fields.path(), [n_heads, n_kv_heads, head_dim], field_names)?;
    let vocab_size = fields.count("vocab_size", 1, 1 << 22)?;
    let n_layers = fields.count("num_hidden_layers", 1, 1024)?;
    let positions = position::read(&mut fields, kind)?;
    let config = DecoderConfig {
        vocab_size,
        hidden_dim,
        n_layers,
        n_heads,
        n_kv_heads,
        head_dim,
        ffn_dim: fields.count("intermediate_size", 1, 1 << 20)?,
        context_len: positions.context_len,
        rope: positions.rope,
        query_scaling: positions.query_scaling,
        rms_norm_eps: fields.number("rms_norm_eps", 1e-12, 0.1)?.unwrap_or(kind.default_eps()),
        tied_embeddings: fields.flag("tie_word_embeddings")?.unwrap_or(false),
        sliding_windows: read_sliding_windows(&mut fields, kind, n_layers)?,
        experts: read_experts(&mut fields, kind)?,
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

fn read_kind(fields: &mut Fields<'_>) -> Result<Kind, FormatError> {
    let found = fields.take_present("model_type").unwrap_or(json!("missing"));
    let Some(kind) = Kind::ALL.into_iter().find(|kind| found == json!(kind.names()[0])) else {
        let names: Vec<&str> = Kind::ALL.iter().map(|kind| kind.names()[0]).collect();
        return Err(fields.bad("model_type", found, format!("one of {}", names.join(", "))));
    };
    let class = kind.names()[1];
    match fields.take_present("architectures") {
        None => Ok(kind),
        Some(names) if names == json!([class]) => Ok(kind),
        Some(other) => Err(fields.bad("architectures", other, format!("[\"{class}\"]"))),
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
            Some(got) if same(&got, &value) => {}
            Some(got) => return Err(fields.unsupported(field, got, reason)),
        }
    }
    Ok(())
}

/// `sliding_window` is one width; `layer_types` says which layers have it, all when it is absent.
fn read_sliding_windows(
    fields: &mut Fields<'_>,
    kind: Kind,
    n_layers: usize,
) -> Result<Vec<Option<usize>>, FormatError> {
    let window = if !fields.has("sliding_window") {
        kind.default_window()
    } else if kind == Kind::Llama {
        match fields.take_present("sliding_window") {
            None => None,
            Some(got) => {
                let reason = "the Llama architecture has no sliding window";
                return Err(fields.unsupported("sliding_window", got, reason));
            }
        }
    } else {
        fields.optional_count("sliding_window", 1, 1 << 28)?
    };
    let Some(types) = fields.take_present("layer_types") else {
        return Ok(if window.is_some() { vec![window] } else { Vec::new() });
    };
    let names = types.as_array().filter(|names| names.len() == n_layers);
    let layers: Option<Vec<Option<usize>>> = names.and_then(|names| {
        let width_of = |name: &Value| match name.as_str() {
            Some("full_attention") => Some(None),
            Some("sliding_attention") => Some(window),
            _ => None,
        };
        names.iter().map(width_of).collect()
    });
    match layers {
        Some(layers) => Ok(shortest_pattern(layers)),
        None => {
            let expected = format!("{n_layers} times \"full_attention\" or \"sliding_attention\"");
            Err(fields.bad("layer_types", types, expected))
        }
    }
}

/// The shortest pattern that gives the same layers when repeated.
pub(crate) fn shortest_pattern(layers: Vec<Option<usize>>) -> Vec<Option<usize>> {
    if layers.iter().all(Option::is_none) {
        return Vec::new();
    }
    let repeats = |n: &usize| layers.iter().enumerate().all(|(i, window)| *window == layers[i % n]);
    let n = (1..=layers.len()).find(repeats).unwrap_or(layers.len());
    layers[..n].to_vec()
}

fn read_experts(fields: &mut Fields<'_>, kind: Kind) -> Result<Option<Experts>, FormatError> {
    if kind != Kind::Mixtral {
        return Ok(None);
    }
    let n_experts = fields.optional_count("num_local_experts", 1, 1024)?.unwrap_or(8);
    let n_active = fields.optional_count("num_experts_per_tok", 1, n_experts)?.unwrap_or(2);
    Ok(Some(Experts { n_experts, n_active }))
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
    fields.token_ids("eos_token_id", vocab_size)
}

/// `dtype` is the name in transformers 5, `torch_dtype` before; without either, files hold f32.
fn read_dtype(fields: &mut Fields<'_>) -> Result<WeightDtype, FormatError> {
    let mut found = None;
    for key in ["torch_dtype", "dtype"] {
        let Some(value) = fields.take_present(key) else { continue };
        let dtype = match value.as_str().map(|name| name.strip_prefix("torch.").unwrap_or(name)) {
            Some("float32") => WeightDtype::F32,
            Some("float16") => WeightDtype::F16,
            Some("bfloat16") => WeightDtype::Bf16,
            _ => {
                let expected = "\"float32\", \"float16\" or \"bfloat16\"".to_owned();
                return Err(fields.bad(key, value, expected));
            }
        };
        if found.is_some_and(|other| other != dtype) {
            return Err(fields.bad(key, value, "the type that torch_dtype names".to_owned()));
        }
        found = Some(dtype);
    }
    Ok(found.unwrap_or(WeightDtype::F32))
}

/// The one kind of quantisation that Mistral publishes in this layout: weights of 8 bits (E4M3) with a scale for each tensor. The
/// scales of activations are for products in 8 bits, which are not computed here.
fn check_quantization(path: &Path, found: Option<Value>) -> Result<(), FormatError> {
    let object = match found {
        None | Some(Value::Null) => return Ok(()),
        Some(Value::Object(object)) => object,
        Some(other) => {
            let fields = Fields::new(path, "", Map::new());
            return Err(fields.bad("quantization_config", other, "an object or null".to_owned()));
        }
    };
    let mut fields = Fields::new(path, "quantization_config", object);
    let reason = "weights of 8 bits are read with one scale for each tensor (quant_method fp8)";
    match fields.take_present("quant_method") {
        Some(method) if method == json!("fp8") => {}
        Some(other) => return Err(fields.unsupported("quant_method", other, reason)),
        None => return Err(fields.bad("quant_method", "missing", "\"fp8\"".to_owned())),
    }
    if let Some(size) = fields.take_present("weight_block_size") {
        return Err(fields.unsupported("weight_block_size", size, reason));
    }
    // Which tensors are in 8 bits is in their own types; the scheme of activations is not computed with.
    for key in ["activation_scheme", "dequantize", "modules_to_not_convert"] {
        fields.take(key);
    }
    fields.refuse_the_rest("it is unknown and could change the computation")
}
