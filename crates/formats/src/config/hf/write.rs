//! `config.json` as transformers loads it.

use serde_json::{Value, json};

use super::super::{DecoderConfig, RopeScaling, WeightDtype};
use super::Kind;

/// The content of `config.json` for a model: of the class that computes it, Mistral's where several do.
///
/// Both the new (`dtype`, `rope_parameters`) and the old names (`torch_dtype`, `rope_theta`, `rope_scaling`) are written, with
/// equal values, so that older readers do not fall back to a default.
///
/// # Errors
/// Names the setting that the layout has no key for.
pub fn to_hf_json(config: &DecoderConfig) -> Result<Value, &'static str> {
    let kind = kind_of(config);
    let [model_type, class] = kind.names();
    let eos = match config.eos_ids.as_slice() {
        [] => Value::Null,
        [one] => json!(one),
        many => json!(many),
    };
    let dtype = match config.dtype {
        WeightDtype::F32 => "float32",
        WeightDtype::F16 => "float16",
        WeightDtype::Bf16 => "bfloat16",
    };
    let mut object = json!({
        "architectures": [class],
        "model_type": model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_dim,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.ffn_dim,
        "max_position_embeddings": config.context_len,
        "rope_theta": config.rope.theta,
        "rope_parameters": rope_parameters(config, true)?,
        "rms_norm_eps": config.rms_norm_eps,
        "tie_word_embeddings": config.tied_embeddings,
        "sliding_window": config.sliding_windows.iter().flatten().next(),
        "bos_token_id": config.bos_id,
        "eos_token_id": eos,
        "pad_token_id": null,
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": true,
        "dtype": dtype,
        "torch_dtype": dtype,
    });
    if config.rope.scaling != RopeScaling::None {
        object["rope_scaling"] = rope_parameters(config, false)?;
    }
    if let Some(experts) = config.experts {
        object["num_local_experts"] = json!(experts.n_experts);
        object["num_experts_per_tok"] = json!(experts.n_active);
    }
    if kind == Kind::Ministral {
        let name = |window: Option<usize>| match window {
            None => "full_attention",
            Some(_) => "sliding_attention",
        };
        let types: Vec<&str> =
            (0..config.n_layers).map(|layer_idx| name(config.sliding_window(layer_idx))).collect();
        object["layer_types"] = json!(types);
    }
    // Which order a value keeps depends on what else the program is built with.
    object.sort_all_objects();
    Ok(object)
}

fn kind_of(config: &DecoderConfig) -> Kind {
    if config.experts.is_some() {
        Kind::Mixtral
    } else if config.query_scaling.is_some() {
        Kind::Ministral3
    } else if config.sliding_windows.len() > 1 {
        Kind::Ministral
    } else {
        Kind::Mistral
    }
}

fn rope_parameters(config: &DecoderConfig, has_theta: bool) -> Result<Value, &'static str> {
    let mut object = match config.rope.scaling {
        RopeScaling::Divided { .. } => return Err("a divisor for each rotary frequency"),
        RopeScaling::None => json!({"rope_type": "default"}),
        RopeScaling::Linear { factor } => json!({"rope_type": "linear", "factor": factor}),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context_len } => {
            json!({
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low_freq_factor,
                "high_freq_factor": high_freq_factor,
                "original_max_position_embeddings": original_context_len,
            })
        }
        RopeScaling::Yarn {
            factor,
            beta_fast,
            beta_slow,
            original_context_len,
            attention_factor,
            is_truncated,
        } => json!({
            "rope_type": "yarn",
            "factor": factor,
            "beta_fast": beta_fast,
            "beta_slow": beta_slow,
            "original_max_position_embeddings": original_context_len,
            "attention_factor": attention_factor,
            "truncate": is_truncated,
        }),
    };
    if let Some(scaling) = config.query_scaling {
        object["llama_4_scaling_beta"] = json!(scaling.beta);
    }
    if has_theta {
        object["rope_theta"] = json!(config.rope.theta);
    }
    Ok(object)
}
