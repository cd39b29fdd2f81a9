use super::*;
use crate::config::DecoderConfig;
use crate::config::tests::tiny_config;
use crate::names::{LayerPart, Layout, WeightName};
use half::bf16;
use std::fs;
use std::io::Write;
use testkit::damage::damaged;
use testkit::failing_writer::FailingWriter;
use testkit::golden::workspace_root;
use testkit::test_dir::TestDir;

fn source<'a>(name: &str, shape: &[usize], data: TensorData<'a>) -> TensorSource<'a> {
    TensorSource { name: name.to_owned(), dtype: TensorDtype::F32, shape: shape.to_vec(), data }
}

fn bytes_of(tensors: Vec<TensorSource<'_>>) -> Vec<u8> {
    let mut bytes = Vec::new();
    write_safetensors_to(&mut bytes, Path::new("test"), tensors).unwrap();
    bytes
}

fn two_tensors() -> Vec<u8> {
    let numbers = [1.0f32, -2.5, 3.25, f32::MIN_POSITIVE];
    let mut half = source("b", &[4], TensorData::F32(&numbers));
    half.dtype = TensorDtype::Bf16;
    bytes_of(vec![half, source("a", &[2, 2], TensorData::F32(&numbers))])
}

fn open_bytes(scratch: &TestDir, bytes: &[u8]) -> Result<WeightFiles, FormatError> {
    fs::write(scratch.path().join(SINGLE_FILE), bytes).unwrap();
    WeightFiles::open(scratch.path())
}

#[test]
fn what_is_written_is_read_back_bit_for_bit() {
    let scratch = TestDir::new("weights-round-trip");
    let numbers: Vec<f32> =
        (0..40_000u32).map(|i| f32::from_bits(i.wrapping_mul(2_654_435))).collect();
    let halves: Vec<bf16> = (0..300u16).map(|i| bf16::from_bits(i * 211)).collect();
    let half_bytes: Vec<u8> = halves.iter().flat_map(|x| x.to_le_bytes()).collect();
    let mut as_bf16 = source("half", &[3, 100], TensorData::Bytes(&half_bytes));
    as_bf16.dtype = TensorDtype::Bf16;
    let streamed = source(
        "streamed",
        &[2],
        TensorData::Stream(Box::new(|writer: &mut dyn Write| {
            writer.write_all(&1.5f32.to_le_bytes())?;
            writer.write_all(&2.5f32.to_le_bytes())
        })),
    );
    let tensors = vec![as_bf16, source("full", &[200, 200], TensorData::F32(&numbers)), streamed];
    let path = scratch.path().join(SINGLE_FILE);
    write_safetensors(&path, tensors).unwrap();
    let files = WeightFiles::open(scratch.path()).unwrap();
    let full = files.get("full").unwrap();
    assert_eq!((full.shape, full.dtype), (&[200, 200][..], TensorDtype::F32));
    let bits = |numbers: &[f32]| numbers.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&full.to_f32()), bits(&numbers));
    let half = files.get("half").unwrap();
    assert_eq!((half.dtype, half.bytes), (TensorDtype::Bf16, &half_bytes[..]));
    let widened: Vec<f32> = halves.iter().map(|x| x.to_f32()).collect();
    assert_eq!(bits(&half.to_f32()), bits(&widened));
    assert_eq!(files.get("streamed").unwrap().to_f32(), [1.5, 2.5]);
    assert_eq!(files.names().collect::<Vec<_>>(), ["full", "half", "streamed"]);
    assert_eq!(scratch.names(), [SINGLE_FILE]);
}

#[test]
fn the_same_tensors_give_the_same_bytes_and_the_reference_reader_takes_them() {
    let bytes = two_tensors();
    assert_eq!(bytes, two_tensors());
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(tensors.tensor("a").unwrap().shape(), [2, 2]);
    assert_eq!(tensors.tensor("b").unwrap().dtype(), Dtype::BF16);
}

#[test]
fn names_are_no_longer_than_in_gguf_files() {
    let scratch = TestDir::new("weights-names");
    let open = |n: usize| {
        let name = "é".repeat(n);
        open_bytes(&scratch, &bytes_of(vec![source(&name, &[1], TensorData::F32(&[1.0]))]))
    };
    assert!(open(MAX_TENSOR_NAME_BYTES / 2).is_ok());
    let error = open(MAX_TENSOR_NAME_BYTES / 2 + 1).unwrap_err().to_string();
    assert!(
        error.contains("has 1026 bytes, expected at most 1024") && error.len() < 400,
        "{error}"
    );
}

#[test]
fn tensors_are_aligned_to_their_number_type() {
    for n in 1..20 {
        let mut half = source(&"h".repeat(n), &[3], TensorData::F32(&[1.0; 3]));
        half.dtype = TensorDtype::Bf16;
        let bytes = bytes_of(vec![half, source("f", &[1], TensorData::F32(&[2.0]))]);
        let (header_len, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
        assert_eq!(header_len % 8, 0);
        assert_eq!(metadata.info("f").unwrap().data_offsets, (0, 4), "f32 before bf16");
    }
}

#[test]
fn a_stream_is_stopped_as_soon_as_it_gives_too_much() {
    let scratch = TestDir::new("runaway");
    let n_accepted = std::cell::Cell::new(0);
    let runaway = TensorData::Stream(Box::new(|writer: &mut dyn Write| {
        for _ in 0..100 {
            writer.write_all(&[0; 4])?;
            n_accepted.set(n_accepted.get() + 1);
        }
        Ok(())
    }));
    let path = scratch.path().join(SINGLE_FILE);
    let result = write_safetensors(&path, [source("x", &[3], runaway)]);
    assert!(matches!(result, Err(FormatError::TensorBytes { expected: 12, .. })));
    assert_eq!(n_accepted.get(), 3);
}

#[test]
fn rounding_to_bf16_is_to_nearest_even() {
    let scratch = TestDir::new("rounding");
    // 1 + 2^-8 is half way between 1 and 1 + 2^-7: even is 1. 1 + 3 * 2^-8 goes up to 1 + 2^-6.
    let numbers = [1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0];
    let mut tensor = source("x", &[2], TensorData::F32(&numbers));
    tensor.dtype = TensorDtype::Bf16;
    let files = open_bytes(&scratch, &bytes_of(vec![tensor])).unwrap();
    assert_eq!(files.get("x").unwrap().to_f32(), [1.0, 1.0 + 1.0 / 64.0]);
}

#[test]
fn tensors_of_the_wrong_length_are_refused_by_name() {
    let scratch = TestDir::new("wrong-length");
    let path = scratch.path().join(SINGLE_FILE);
    let stream = |n: usize| -> TensorData<'static> {
        TensorData::Stream(Box::new(move |writer: &mut dyn Write| writer.write_all(&vec![0; n])))
    };
    let cases = [
        source("short", &[3], TensorData::F32(&[1.0])),
        source("long", &[1], TensorData::Bytes(&[0; 5])),
        source("short-stream", &[3], stream(11)),
        source("long-stream", &[3], stream(13)),
    ];
    for tensor in cases {
        let name = tensor.name.clone();
        let error = write_safetensors(&path, [tensor]).unwrap_err();
        assert!(matches!(&error, FormatError::TensorBytes { tensor, .. } if *tensor == name));
        assert!(scratch.names().is_empty(), "{error}");
    }
    let twice = ["x", "x"].map(|name| source(name, &[1], TensorData::F32(&[1.0])));
    let error = write_safetensors(&path, twice).unwrap_err();
    assert!(matches!(error, FormatError::TensorTwice { .. }), "{error}");
}

#[test]
fn a_full_disk_in_the_middle_of_a_tensor_leaves_the_old_file() {
    let scratch = TestDir::new("full-disk");
    let old = two_tensors();
    let path = scratch.path().join(SINGLE_FILE);
    fs::write(&path, &old).unwrap();
    let stream = TensorData::Stream(Box::new(|inner: &mut dyn Write| {
        FailingWriter { inner, remaining_bytes: 100 }.write_all(&[0; 400])
    }));
    let error = write_safetensors(&path, [source("x", &[100], stream)]);
    assert!(error.unwrap_err().is_disk_full());
    assert_eq!(fs::read(&path).unwrap(), old);
    assert_eq!(scratch.names(), [SINGLE_FILE]);
}

fn model_tensors(config: &DecoderConfig) -> Vec<(String, Vec<usize>, Vec<f32>)> {
    let tensor = |name: WeightName| {
        let shape = name.shape(config);
        let n_elements = shape.iter().product();
        (name.hf_name(), shape, vec![0.5; n_elements])
    };
    WeightName::all(config).into_iter().map(tensor).collect()
}

fn write_model(path: &Path, tensors: &[(String, Vec<usize>, Vec<f32>)]) {
    let sources =
        tensors.iter().map(|(name, shape, data)| source(name, shape, TensorData::F32(data)));
    write_safetensors(path, sources).unwrap();
}

#[test]
fn missing_misshapen_and_unused_tensors_are_named() {
    let scratch = TestDir::new("check");
    let path = scratch.path().join(SINGLE_FILE);
    let config = tiny_config();
    let mut tensors = model_tensors(&config);
    tensors.push(("model.layers.0.self_attn.rotary_emb.inv_freq".to_owned(), vec![1], vec![0.0]));
    write_model(&path, &tensors);
    let leftovers = ModelWeights::open(scratch.path()).unwrap().check(&config).unwrap();
    assert_eq!(leftovers.unused, ["model.layers.0.self_attn.rotary_emb.inv_freq"]);

    let wide = DecoderConfig { n_kv_heads: 4, ..config.clone() };
    let error = ModelWeights::open(scratch.path()).unwrap().check(&wide).unwrap_err().to_string();
    assert!(error.contains("`model.layers.0.self_attn.k_proj.weight`"), "{error}");
    assert!(
        error.contains("[32, 64], expected [64, 64] (n_kv_heads * head_dim, hidden_dim)"),
        "{error}"
    );

    tensors.remove(7);
    write_model(&path, &tensors);
    let error = ModelWeights::open(scratch.path()).unwrap().check(&config).unwrap_err().to_string();
    assert!(error.contains("`model.layers.0.mlp.gate_proj.weight` is missing"), "{error}");
}

#[test]
fn sharded_weights_are_read_through_their_index() {
    let scratch = TestDir::new("sharded");
    let config = tiny_config();
    let tensors = model_tensors(&config);
    let (first, second) = tensors.split_at(5);
    let names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    write_model(&scratch.path().join(names[0]), first);
    write_model(&scratch.path().join(names[1]), second);
    let mut map = serde_json::Map::new();
    for (tensors, file) in [(first, names[0]), (second, names[1])] {
        map.extend(tensors.iter().map(|(name, _, _)| (name.clone(), file.into())));
    }
    let write_index = |map: &serde_json::Map<String, serde_json::Value>| {
        let index = serde_json::json!({"metadata": {"total_size": 1}, "weight_map": map});
        fs::write(scratch.path().join(INDEX_FILE), index.to_string()).unwrap();
    };
    write_index(&map);
    let weights = ModelWeights::open(scratch.path()).unwrap();
    assert_eq!(weights.check(&config).unwrap(), Leftovers::default());
    assert_eq!(WeightFiles::open(scratch.path()).unwrap().paths().count(), 2);

    for (tensor, file, expected) in [
        ("lm_head.weight", names[0], "`lm_head.weight` is missing"),
        ("model.norm.weight", names[0], "as the index says"),
        ("model.norm.weight", "../model.safetensors", "cannot be used as a file name"),
        ("model.norm.weight", "model-3.safetensors", "model-3.safetensors"),
    ] {
        let mut lying = map.clone();
        lying.insert(tensor.to_owned(), file.into());
        write_index(&lying);
        let error = WeightFiles::open(scratch.path()).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    write_model(&scratch.path().join(SINGLE_FILE), &tensors);
    let error = WeightFiles::open(scratch.path()).unwrap_err();
    assert!(matches!(error, FormatError::AmbiguousWeights { .. }), "{error}");
}

#[test]
fn folders_without_safetensors_say_what_they_have() {
    let scratch = TestDir::new("no-weights");
    let error = WeightFiles::open(scratch.path()).unwrap_err();
    assert!(matches!(error, FormatError::NoWeights { .. }), "{error}");
    fs::write(scratch.path().join("pytorch_model.bin"), "x").unwrap();
    let error = WeightFiles::open(scratch.path()).unwrap_err();
    assert!(matches!(error, FormatError::Pickle { .. }), "{error}");
    assert!(error.to_string().contains("pytorch_model.bin"), "{error}");
    let error = WeightFiles::open(&scratch.path().join("none")).unwrap_err();
    assert!(matches!(error, FormatError::Io { .. }), "{error}");
}

#[test]
fn model_directories_of_transformers_are_read_whole() {
    let golden = workspace_root().join("golden/logits");
    for (name, is_tied) in [("tied", true), ("untied", false), ("wide_heads", true)] {
        let dir = golden.join(name);
        let config = crate::config::hf::read_config(&dir).unwrap().decoder;
        let weights = ModelWeights::open(&dir).unwrap();
        let leftovers = weights.check(&config).unwrap();
        assert_eq!(leftovers, Leftovers::default(), "{name}: nothing is unused");
        assert_eq!(
            weights.n_bytes(),
            4 * config.n_parameters(),
            "{name}: f32, and nothing is missing"
        );
        assert_eq!(config.tied_embeddings, is_tied);
    }
}

fn lying_file(header: &str, n_data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + n_data, 0);
    bytes
}

#[test]
fn lying_headers_are_refused_with_the_file_name() {
    let scratch = TestDir::new("lying");
    let cases = [
        vec![],
        vec![0; 7],
        u64::MAX.to_le_bytes().to_vec(),
        (1u64 << 62).to_le_bytes().to_vec(),
        lying_file("{}", 4),
        lying_file("[]", 0),
        lying_file(r#"{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,8]}}"#, 8),
        lying_file(r#"{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, 4),
        lying_file(r#"{"x":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#, 8),
        lying_file(r#"{"x":{"dtype":"F32","shape":[1],"data_offsets":[8,4]}}"#, 8),
        lying_file(r#"{"x":{"dtype":"Q4","shape":[1],"data_offsets":[0,4]}}"#, 4),
        lying_file(
            r#"{"x":{"dtype":"F32","shape":[4611686018427387904,8],"data_offsets":[0,4]}}"#,
            4,
        ),
        lying_file(
            r#"{"x":{"dtype":"F32","shape":[18446744073709551615,18446744073709551615],"data_offsets":[0,4]}}"#,
            4,
        ),
    ];
    for bytes in cases {
        let error = open_bytes(&scratch, &bytes).unwrap_err().to_string();
        assert!(error.contains("model.safetensors has an invalid safetensors header"), "{error}");
    }
    let unread = lying_file(r#"{"x":{"dtype":"I16","shape":[2],"data_offsets":[0,4]}}"#, 4);
    let error = open_bytes(&scratch, &unread).unwrap().get("x").unwrap_err().to_string();
    assert!(
        error.contains("`x`") && error.contains("I16") && error.contains(SINGLE_FILE),
        "{error}"
    );
}

#[test]
fn every_truncation_is_refused() {
    let scratch = TestDir::new("truncated");
    let bytes = two_tensors();
    for n in 0..bytes.len() {
        assert!(open_bytes(&scratch, &bytes[..n]).is_err(), "{n} of {} bytes", bytes.len());
    }
    assert!(open_bytes(&scratch, &bytes).is_ok());
}

#[test]
fn damaged_files_never_panic() {
    let scratch = TestDir::new("damaged");
    let mut n_right = 0;
    for bytes in damaged(&two_tensors(), 1, 2_000) {
        if let Ok(files) = open_bytes(&scratch, &bytes) {
            n_right += 1;
            for name in files.names() {
                let _ = files.get(name).map(|view| view.to_f32());
            }
        }
    }
    assert!((1..1_500).contains(&n_right), "{n_right} of 2000 are still right");
}

/// A model whose query projection of the first layer is in 8 bits, under the names of a layout.
fn write_f8_model(
    scratch: &TestDir,
    layout: Layout,
    scale: Option<(&str, &[f32])>,
) -> ModelWeights {
    let config = tiny_config();
    let zeros = vec![0.0f32; config.vocab_size * config.hidden_dim];
    let bytes: Vec<u8> = (0..64 * 64).map(|i| (i / 64) as u8).collect();
    let query = WeightName::Layer { layer_idx: 0, part: LayerPart::Query };
    let mut sources: Vec<TensorSource<'_>> = WeightName::all(&config)
        .into_iter()
        .map(|name| {
            let n_elements = name.shape(&config).iter().product();
            let data = TensorData::F32(&zeros[..n_elements]);
            let mut source = source(&name.name(layout), &name.shape(&config), data);
            if name == query {
                (source.dtype, source.data) = (TensorDtype::F8E4M3, TensorData::Bytes(&bytes));
            }
            source
        })
        .collect();
    if let Some((name, values)) = scale {
        sources.push(source(name, &[values.len()], TensorData::F32(values)));
    }
    let file = if layout == Layout::Native { NATIVE_FILE } else { SINGLE_FILE };
    write_safetensors(&scratch.path().join(file), sources).unwrap();
    match layout {
        Layout::Native => ModelWeights::open_native(scratch.path()).unwrap(),
        _ => ModelWeights::open(scratch.path()).unwrap(),
    }
}

#[test]
fn weights_of_eight_bits_are_scaled_and_rows_reordered() {
    let config = tiny_config();
    let query = WeightName::Layer { layer_idx: 0, part: LayerPart::Query };
    let cases = [
        (Layout::HuggingFace, "model.layers.0.self_attn.q_proj.weight_scale_inv"),
        (Layout::Native, "layers.0.attention.wq.qscale_weight"),
    ];
    for (layout, scale_name) in cases {
        let scratch = TestDir::new("f8");
        let weights = write_f8_model(&scratch, layout, Some((scale_name, &[0.5])));
        assert_eq!(weights.check(&config).unwrap(), Leftovers::default());
        let weight = weights.weight(query, &config).unwrap();
        assert_eq!((weight.dtype(), weight.scale()), (TensorDtype::F8E4M3, Some(0.5)));
        let mut rows = vec![0.0; 3 * 64];
        weight.read_rows(15..18, &mut rows);
        // Heads are 16 rows: row 15 is the second of pair 7, rows 16 and 17 the first of the next head's pairs 0 and 1.
        let in_file: [u8; 3] = if layout == Layout::Native { [15, 16, 18] } else { [15, 16, 17] };
        for (row, byte) in rows.chunks(64).zip(in_file) {
            let mut number = [0.0];
            TensorDtype::F8E4M3.read_f32(&[byte], &mut number);
            assert!(row.iter().all(|&x| x == 0.5 * number[0]), "{layout:?} {row:?}");
        }

        let missing = write_f8_model(&scratch, layout, None).check(&config).unwrap_err();
        assert!(missing.to_string().contains(&format!("`{scale_name}` is missing")), "{missing}");
        let weights = write_f8_model(&scratch, layout, Some((scale_name, &[0.5, 0.5])));
        let error = weights.check(&config).unwrap_err().to_string();
        assert!(error.contains("has shape [2], expected [] (one scale"), "{error}");
    }
}

#[test]
fn the_text_part_is_found_under_its_prefixes() {
    let config = tiny_config();
    let prefixes: [fn(&str) -> String; 2] = [
        |name| format!("language_model.{name}"),
        |name| name.replacen("model.", "model.language_model.", 1),
    ];
    for prefix in prefixes {
        let scratch = TestDir::new("text-part");
        let mut tensors = model_tensors(&config);
        tensors.iter_mut().for_each(|(name, ..)| *name = prefix(name));
        tensors.push(("model.vision_tower.patch_conv.weight".to_owned(), vec![1], vec![0.0]));
        write_model(&scratch.path().join(SINGLE_FILE), &tensors);
        let weights = ModelWeights::open(scratch.path()).unwrap();
        let leftovers = Leftovers { unused: Vec::new(), n_of_other_parts: 1 };
        assert_eq!(weights.check(&config).unwrap(), leftovers);
    }
}
