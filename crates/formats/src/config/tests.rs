use super::*;
use proptest::prelude::*;
use testkit::damage::damaged;

pub(crate) fn tiny_config() -> DecoderConfig {
    DecoderConfig {
        vocab_size: 512,
        hidden_dim: 64,
        n_layers: 2,
        n_heads: 4,
        n_kv_heads: 2,
        head_dim: 16,
        ffn_dim: 128,
        context_len: 256,
        rope_theta: 1e4,
        rms_norm_eps: 1e-5,
        tied_embeddings: true,
        sliding_window: None,
        bos_id: Some(1),
        eos_ids: vec![2],
        dtype: WeightDtype::F32,
    }
}

fn parse(value: &Value) -> Result<DecoderConfig, FormatError> {
    parse_config(value.to_string().as_bytes())
}

/// The tiny configuration with one field replaced (`None` removes it).
fn with(field: &str, value: Option<Value>) -> Value {
    let mut json = to_hf_json(&tiny_config());
    let object = json.as_object_mut().unwrap();
    match value {
        Some(value) => object.insert(field.to_owned(), value),
        None => object.remove(field),
    };
    json
}

#[test]
fn what_is_written_is_read_back() {
    let configs = [
        tiny_config(),
        DecoderConfig {
            tied_embeddings: false,
            sliding_window: Some(4096),
            bos_id: None,
            eos_ids: vec![2, 7, 9],
            dtype: WeightDtype::Bf16,
            rope_theta: 1e6,
            head_dim: 32,
            ..tiny_config()
        },
        DecoderConfig { eos_ids: vec![], ..tiny_config() },
    ];
    for config in configs {
        assert_eq!(parse(&to_hf_json(&config)).unwrap(), config);
    }
}

#[test]
fn files_of_transformers_5_are_read() {
    // As written by transformers 5.23 for MistralConfig(head_dim=64) and LlamaConfig().
    let mistral = json!({
        "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2, "head_dim": 64, "hidden_act": "silu",
        "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336,
        "max_position_embeddings": 131_072, "model_type": "mistral", "num_attention_heads": 32,
        "num_hidden_layers": 32, "num_key_value_heads": 8, "pad_token_id": null, "rms_norm_eps": 1e-06,
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}, "sliding_window": 4096,
        "tie_word_embeddings": false, "transformers_version": "5.23.0", "use_cache": true, "vocab_size": 32000,
        "dtype": "bfloat16", "architectures": ["MistralForCausalLM"]
    });
    let config = parse(&mistral).unwrap();
    assert_eq!((config.head_dim, config.sliding_window), (64, Some(4096)));
    assert_eq!((config.rope_theta, config.dtype), (1e4, WeightDtype::Bf16));
    let llama = json!({
        "attention_bias": false, "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": [2, 3],
        "head_dim": 64, "hidden_act": "silu", "hidden_size": 256, "initializer_range": 0.02,
        "intermediate_size": 11008, "max_position_embeddings": 2048, "mlp_bias": false, "model_type": "llama",
        "num_attention_heads": 4, "num_hidden_layers": 32, "num_key_value_heads": 4, "pad_token_id": null,
        "pretraining_tp": 1, "rms_norm_eps": 1e-06,
        "rope_parameters": {"rope_theta": 500000.0, "rope_type": "default"},
        "tie_word_embeddings": true, "transformers_version": "5.23.0", "use_cache": true, "vocab_size": 32000
    });
    let config = parse(&llama).unwrap();
    assert_eq!((config.rope_theta, config.sliding_window), (5e5, None));
    assert_eq!((config.eos_ids, config.tied_embeddings), (vec![2, 3], true));
}

#[test]
fn absent_fields_mean_what_transformers_means_by_them() {
    let mut json = to_hf_json(&tiny_config());
    let object = json.as_object_mut().unwrap();
    for field in
        ["head_dim", "rope_theta", "rope_parameters", "sliding_window", "dtype", "torch_dtype"]
    {
        object.remove(field);
    }
    for field in ["bos_token_id", "eos_token_id", "tie_word_embeddings", "rms_norm_eps"] {
        object.remove(field);
    }
    let config = parse(&json).unwrap();
    assert_eq!((config.head_dim, config.rope_theta, config.rms_norm_eps), (16, 1e4, 1e-6));
    assert_eq!((config.bos_id, config.eos_ids), (Some(1), vec![2]));
    assert_eq!((config.sliding_window, config.tied_embeddings), (Some(4096), false));
}

#[test]
fn settings_that_change_the_computation_are_refused_by_name() {
    let cases = [
        ("model_type", json!("gpt2")),
        ("architectures", json!(["MistralForSequenceClassification"])),
        ("hidden_act", json!("gelu")),
        ("attention_bias", json!(true)),
        ("mlp_bias", json!(true)),
        ("rope_scaling", json!({"rope_type": "llama3", "factor": 8.0})),
        ("rope_parameters", json!({"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0})),
        ("rope_parameters", json!({"rope_type": "default", "rope_theta": 5.0e4})),
        ("rope_parameters", json!({"rope_type": "default", "attention_factor": 1.2})),
        ("rope_parameters", json!({"rope_type": "default", "partial_rotary_factor": 0.5})),
        ("quantization_config", json!({"bits": 4})),
        ("sliding_window", json!([4096, null])),
        ("layer_types", json!(["full_attention"])),
        ("attn_logit_softcapping", json!(50.0)),
        ("dtype", json!("float16")),
        ("dtype", json!("bfloat16")),
        ("pretraining_tp", json!(2)),
    ];
    for (field, value) in cases {
        let error = parse(&with(field, Some(value))).unwrap_err().to_string();
        assert!(error.contains(field), "{field}: {error}");
    }
}

#[test]
fn every_number_has_bounds() {
    let cases = [
        ("vocab_size", json!(0)),
        ("vocab_size", json!(u64::MAX)),
        ("hidden_size", json!(-64)),
        ("hidden_size", json!(64.5)),
        ("hidden_size", json!("64")),
        ("num_hidden_layers", json!(1_000_000)),
        ("num_attention_heads", json!(1_000_000)),
        ("num_key_value_heads", json!(3)),
        ("num_key_value_heads", json!(8)),
        ("head_dim", json!(15)),
        ("intermediate_size", json!(1u64 << 40)),
        ("max_position_embeddings", json!(null)),
        ("rope_theta", json!(0)),
        ("rms_norm_eps", json!(-1e-5)),
        ("rms_norm_eps", json!(1e300)),
        ("sliding_window", json!(0)),
        ("bos_token_id", json!(512)),
        ("eos_token_id", json!([1, 5_000_000_000u64])),
        ("tie_word_embeddings", json!(1)),
    ];
    for (field, value) in cases {
        let error = parse(&with(field, Some(value))).unwrap_err().to_string();
        assert!(error.contains(&format!("`{field}`")), "{field}: {error}");
        assert!(error.contains("expected"), "{error}");
    }
    for field in ["vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size"] {
        let error = parse(&with(field, None)).unwrap_err().to_string();
        assert!(error.contains(&format!("`{field}` of config.json is missing")), "{error}");
    }
}

#[test]
fn long_hostile_values_are_shortened_in_the_message() {
    let error = parse(&with("hidden_act", Some(json!("é".repeat(100_000))))).unwrap_err();
    assert!(error.to_string().len() < 500);
}

#[test]
fn the_parameter_count_is_the_sum_of_the_shapes() {
    // embedding 512*64; per layer 2*64 + 64*64 + 2*(32*64) + 64*64 + 3*(128*64); final norm 64.
    let expected = 32_768 + 2 * (128 + 4096 + 4096 + 4096 + 24_576) + 64;
    assert_eq!(tiny_config().n_parameters(), expected);
}

proptest! {
    #[test]
    fn hostile_bytes_give_an_error_and_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
        prop_assert!(parse_config(&bytes).is_err());
    }
}

#[test]
fn damaged_files_never_panic() {
    let valid = to_hf_json(&tiny_config()).to_string();
    let n_right = damaged(valid.as_bytes(), 1, 5_000).filter(|b| parse_config(b).is_ok()).count();
    assert!((1..4_000).contains(&n_right), "{n_right} of 5000 are still right");
}
