use std::fs;

use testkit::damage::damaged;
use testkit::golden::workspace_root;
use testkit::test_dir::TestDir;

use super::*;
use crate::config::{DecoderConfig, RopeScaling, WeightDtype};
use crate::model_dir::ModelDir;
use crate::weights::ModelWeights;

fn golden(name: &str) -> Vec<u8> {
    let dir = workspace_root().join("golden/architectures").join(name);
    fs::read(dir.join("gguf/model.gguf")).unwrap()
}

fn open(scratch: &TestDir, bytes: &[u8]) -> Result<GgufFile, FormatError> {
    let path = scratch.path().join("model.gguf");
    fs::write(&path, bytes).unwrap();
    GgufFile::open(&path)
}

/// A header written by hand.
struct Header(Vec<u8>);

impl Header {
    fn new(version: u32, n_tensors: u64, n_entries: u64) -> Self {
        let mut header = Self(b"GGUF".to_vec());
        header.0.extend(version.to_le_bytes());
        header.0.extend(n_tensors.to_le_bytes());
        header.0.extend(n_entries.to_le_bytes());
        header
    }

    fn text(mut self, text: &[u8]) -> Self {
        self.0.extend((text.len() as u64).to_le_bytes());
        self.0.extend(text);
        self
    }

    fn u32(mut self, number: u32) -> Self {
        self.0.extend(number.to_le_bytes());
        self
    }

    fn u64(mut self, number: u64) -> Self {
        self.0.extend(number.to_le_bytes());
        self
    }

    /// A tensor of one axis.
    fn tensor(self, name: &str, len: u64, kind: u32, offset: u64) -> Self {
        self.text(name.as_bytes()).u32(1).u64(len).u32(kind).u64(offset)
    }

    fn padded(mut self, n_data: usize) -> Vec<u8> {
        self.0.resize(self.0.len().next_multiple_of(32) + n_data, 0);
        self.0
    }
}

#[test]
fn files_of_the_gguf_package_are_read_whole() {
    let scratch = TestDir::new("gguf-read");
    for (name, dtype) in [
        ("mistral", WeightDtype::Bf16),
        ("llama2", WeightDtype::F16),
        ("quantised_a", WeightDtype::Bf16),
        ("mixtral", WeightDtype::Bf16),
    ] {
        let file = open(&scratch, &golden(name)).unwrap();
        let config = file.decoder_config().unwrap();
        assert_eq!(config.dtype, dtype, "{name}");
        let n_bytes: usize = file.tensors().values().map(|tensor| file.bytes(tensor).len()).sum();
        let weights = ModelWeights::from_gguf(file);
        assert!(weights.check(&config).unwrap().unused.is_empty(), "{name}");
        assert_eq!(weights.n_bytes(), n_bytes as u64);
    }
}

/// What the same model says of itself in a Hugging Face directory.
#[test]
fn configurations_are_those_of_the_other_layouts() {
    let scratch = TestDir::new("gguf-config");
    for name in
        ["mistral", "mistral_window", "ministral", "ministral3", "mixtral", "linear", "yarn"]
    {
        let dir = workspace_root().join("golden/architectures").join(name).join("hf");
        let expected = ModelDir::open(&dir).unwrap().config().clone();
        let file = open(&scratch, &golden(name)).unwrap();
        assert_eq!(file.decoder_config().unwrap(), expected, "{name}");
    }
    let file = open(&scratch, &golden("llama3")).unwrap();
    let RopeScaling::Divided { divisors } = file.decoder_config().unwrap().rope.scaling else {
        panic!("llama3 has a divisor for each frequency");
    };
    assert_eq!((divisors[0], divisors[7]), (1.0, 8.0));
}

#[test]
fn values_of_every_type_are_read() {
    let scratch = TestDir::new("gguf-values");
    let header = Header::new(2, 0, 4)
        .text(b"a.array")
        .u32(9)
        .u32(8)
        .u64(2)
        .text(b"x")
        .text(b"")
        .text(b"b.float")
        .u32(6)
        .u32(1.5_f32.to_bits())
        .text(b"c.signed")
        .u32(11)
        .u64(u64::MAX)
        .text(b"d.text")
        .u32(8)
        .text("é".as_bytes());
    let file = open(&scratch, &header.padded(0)).unwrap();
    assert_eq!(file.get("b.float"), Some(Value::Float(1.5)));
    assert_eq!(file.get("c.signed"), Some(Value::Signed(-1)));
    assert_eq!(file.get("d.text"), Some(Value::Text("é".as_bytes())));
    assert_eq!(file.get("e"), None);
    let Some(Value::Array(array)) = file.get("a.array") else { panic!("an array") };
    assert_eq!(array.iter().collect::<Vec<_>>(), [Value::Text(b"x"), Value::Text(b"")]);
}

#[test]
fn lying_headers_are_refused_by_what_they_lie_about() {
    let scratch = TestDir::new("gguf-lies");
    let twice = Header::new(3, 2, 0).tensor("x", 8, 0, 0).tensor("x", 8, 0, 32);
    let mut deep = Header::new(3, 0, 1).text(b"k").u32(9);
    for _ in 0..6 {
        deep = deep.u32(9).u64(1);
    }
    let cases = [
        (b"GGML".to_vec(), "magic"),
        (b"GGUF".to_vec(), "version"),
        (Header::new(1, 0, 0).padded(0), "version"),
        (Header::new(3_u32.swap_bytes(), 0, 0).padded(0), "little endian"),
        (Header::new(3, u64::MAX, 0).padded(0), "tensor_count"),
        (Header::new(3, 0, 1 << 40).padded(0), "metadata_kv_count"),
        (Header::new(3, 0, 1).text(b"").padded(0), "metadata key"),
        (Header::new(3, 0, 1).text(b"\xff\xfe").padded(0), "UTF-8"),
        (Header::new(3, 0, 1).u64(u64::MAX).padded(0), "metadata key"),
        (Header::new(3, 0, 1).text(b"k").u32(13).padded(0), "value type 13"),
        (Header::new(3, 0, 1).text(b"k").u32(8).u64(1 << 60).padded(0), "`k`"),
        (Header::new(3, 0, 1).text(b"k").u32(9).u32(5).u64(u64::MAX).padded(0), "`k`"),
        (Header::new(3, 0, 1).text(b"k").u32(9).u32(8).u64(u64::MAX).padded(0), "`k`"),
        (deep.padded(64), "deeper arrays"),
        (Header::new(3, 1, 0).text(b"x").u32(5).padded(64), "n_dimensions"),
        (Header::new(3, 1, 0).text(b"x").u32(0).padded(64), "n_dimensions"),
        (Header::new(3, 1, 0).tensor("x", 8, 0, 0).padded(31), "tensor `x`"),
        (Header::new(3, 1, 0).tensor("x", 8, 0, 7).padded(64), "offset of `x`"),
        (Header::new(3, 1, 0).tensor("x", 8, 0, u64::MAX - 31).padded(64), "tensor `x`"),
        (Header::new(3, 1, 0).tensor("x", 1 << 40, 0, 0).padded(64), "tensor `x`"),
        (Header::new(3, 1, 0).tensor("x", 33, 2, 0).padded(64), "whole blocks of 32"),
        (Header::new(3, 1, 0).tensor("x", 8, 16, 0).padded(64), "ggml type 16"),
        (twice.padded(64), "tensor name"),
        (
            Header::new(3, 0, 1).text(b"general.alignment").u32(4).u32(3).padded(0),
            "general.alignment",
        ),
    ];
    for (bytes, expected) in cases {
        let error = open(&scratch, &bytes).unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains("model.gguf"), "{expected}: {error}");
        assert!(error.len() < 1000, "{error}");
    }
}

#[test]
fn other_architectures_and_settings_are_refused_by_key() {
    let scratch = TestDir::new("gguf-settings");
    let file = open(&scratch, &Header::new(3, 0, 0).padded(0)).unwrap();
    let error = file.decoder_config().unwrap_err().to_string();
    assert!(error.contains("`general.architecture`") && error.contains("missing"), "{error}");
    let bytes = golden("mistral");
    let replaced = |from: &[u8], to: &[u8]| {
        let at = bytes.windows(from.len()).position(|window| window == from).unwrap();
        let mut bytes = bytes.clone();
        bytes[at..at + to.len()].copy_from_slice(to);
        let file = open(&scratch, &bytes)?;
        ModelWeights::from_gguf(GgufFile::open(file.path())?).check(&file.decoder_config()?)?;
        Ok::<_, FormatError>(file)
    };
    let cases: [(&[u8], &[u8], &str); 4] = [
        // The text of general.architecture is the first "llama" of the file.
        (b"llama", b"gemma", "gemma, expected one of llama, mistral3"),
        (b"llama.block_count", b"llama.block_cownt", "`llama.block_count`"),
        (b"output_norm.weight", b"output_narm.weight", "`output_norm.weight` is missing"),
        (b"blk.1.attn_v.weight", b"blk.1.attn_w.weight", "`blk.1.attn_v.weight` is missing"),
    ];
    for (from, to, expected) in cases {
        let error = replaced(from, to).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn damaged_files_never_panic() {
    let scratch = TestDir::new("gguf-damage");
    for name in ["mixtral", "ministral3"] {
        let valid = golden(name);
        // The header is what can lie: damage in the weights is only other weights.
        let header = &valid[..6_000];
        for n in (0..header.len()).step_by(97) {
            assert!(open(&scratch, &header[..n]).is_err(), "{name} cut at {n}");
        }
        let mut n_read = 0;
        for damaged_header in damaged(header, 1, 2_000) {
            let bytes = [&damaged_header[..], &valid[header.len()..]].concat();
            let Ok(file) = open(&scratch, &bytes) else { continue };
            let Ok(config) = file.decoder_config() else { continue };
            n_read += usize::from(ModelWeights::from_gguf(file).check(&config).is_ok());
        }
        assert!((1..1_900).contains(&n_read), "{n_read} of 2000 are still right");
    }
}

#[test]
fn a_folder_of_one_file_is_a_model_and_of_two_is_not() {
    let scratch = TestDir::new("gguf-folder");
    let dir = scratch.path().join("tiny");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("a.gguf"), golden("mistral")).unwrap();
    let from_folder = ModelDir::open(&dir).unwrap();
    let from_file = ModelDir::open(&dir.join("a.gguf")).unwrap();
    assert_eq!(from_folder.config(), from_file.config());
    let DecoderConfig { vocab_size, .. } = *from_file.config();
    assert_eq!(vocab_size, 128);
    fs::write(dir.join("b.gguf"), golden("mistral")).unwrap();
    let error = ModelDir::open(&dir).unwrap_err().to_string();
    assert!(error.contains("holds 2 GGUF files"), "{error}");
}

/// The place behind a key or name and `skipped` more bytes.
fn behind(bytes: &[u8], name: &[u8], skipped: usize) -> usize {
    let at = bytes.windows(name.len()).position(|window| window == name).unwrap();
    at + name.len() + skipped
}

#[test]
fn tensors_that_share_bytes_are_refused() {
    let scratch = TestDir::new("gguf-overlap");
    let header = Header::new(3, 2, 0).tensor("a", 24, 0, 0).tensor("b", 8, 0, 64);
    let error = open(&scratch, &header.padded(96)).unwrap_err().to_string();
    assert!(error.contains("tensor `b`") && error.contains("which `a` has"), "{error}");
    let apart = Header::new(3, 2, 0).tensor("a", 16, 0, 0).tensor("b", 8, 0, 64);
    open(&scratch, &apart.padded(96)).unwrap();
}

#[test]
fn biases_are_refused() {
    let scratch = TestDir::new("gguf-bias");
    let header = Header::new(3, 1, 1).text(b"general.architecture").u32(8).text(b"llama");
    let bytes = header.tensor("blk.0.attn_q.bias", 8, 0, 0).padded(32);
    let error = open(&scratch, &bytes).unwrap().decoder_config().unwrap_err().to_string();
    assert!(error.contains("attn_q.bias") && error.contains("without biases"), "{error}");
}

#[test]
fn a_factor_counts_unless_the_scaling_is_called_none() {
    let scratch = TestDir::new("gguf-none");
    let mut bytes = golden("linear");
    let scaling = |bytes: &[u8]| {
        let file = open(&scratch, bytes).unwrap();
        file.decoder_config().unwrap().rope.scaling
    };
    assert!(matches!(scaling(&bytes), RopeScaling::Linear { .. }));
    let file = open(&scratch, &bytes).unwrap();
    let data_begin = file.tensors().values().map(|tensor| tensor.begin).min().unwrap();
    // Two bytes less of text, two bytes more before the tensors.
    bytes.splice(data_begin..data_begin, [0, 0]);
    let at = behind(&bytes, b"llama.rope.scaling.type", 4);
    bytes.splice(at..at + 14, [&4_u64.to_le_bytes()[..], b"none"].concat());
    assert_eq!(scaling(&bytes), RopeScaling::None);
}

#[test]
fn a_norm_in_blocks_is_not_written_again() {
    let scratch = TestDir::new("gguf-norm");
    let mut bytes = golden("quantised_a");
    let at = behind(&bytes, b"output_norm.weight", 4 + 8);
    assert_eq!(bytes[at..at + 4], 0_u32.to_le_bytes());
    bytes[at..at + 4].copy_from_slice(&8_u32.to_le_bytes());
    open(&scratch, &bytes).unwrap();
    let model = ModelDir::open(&scratch.path().join("model.gguf")).unwrap();
    let error = crate::convert::write_gguf_file(&model, &scratch.path().join("again.gguf"), None);
    let error = error.unwrap_err().to_string();
    assert!(error.contains("`output_norm.weight`") && error.contains("Q8_0"), "{error}");
}

fn vocabulary(encoding: GgufEncoding) -> GgufVocabulary {
    GgufVocabulary {
        tokens: ["<unk>", "<s>", "</s>", "a"].map(str::to_owned).to_vec(),
        kinds: [&[GgufTokenKind::Control; 3][..], &[GgufTokenKind::Normal]].concat(),
        encoding,
        bos_id: Some(1),
        eos_id: Some(2),
        adds_bos: true,
        chat_template: Some("{{ messages }}".to_owned()),
    }
}

#[test]
fn a_vocabulary_is_read_back_as_it_was_written() {
    let scratch = TestDir::new("gguf-vocabulary");
    let dir = workspace_root().join("golden/architectures/mistral/hf");
    let model = ModelDir::open(&dir).unwrap();
    let text = |text: &str| text.to_owned();
    let encodings = [
        GgufEncoding::Pieces { scores: vec![0.0, 0.0, 0.0, -1.5], adds_space: false },
        GgufEncoding::Bytes { merges: vec![text("a a")], split: Some(text("tekken")) },
        GgufEncoding::Bytes { merges: Vec::new(), split: None },
    ];
    for (number, encoding) in encodings.into_iter().enumerate() {
        let mut expected = vocabulary(encoding);
        expected.adds_bos = number != 1;
        let path = scratch.path().join(format!("{number}.gguf"));
        crate::convert::write_gguf_file(&model, &path, Some(&expected)).unwrap();
        let mut found = ModelDir::open(&path).unwrap().vocabulary().unwrap().unwrap();
        // The model has more ids than the vocabulary.
        assert_eq!(found.tokens.len(), model.config().vocab_size);
        assert_eq!(found.kinds[4], GgufTokenKind::Unused);
        found.tokens.truncate(4);
        found.kinds.truncate(4);
        if let GgufEncoding::Pieces { scores, .. } = &mut found.encoding {
            scores.truncate(4);
        }
        assert_eq!(found, expected);
    }
}

#[test]
fn what_a_vocabulary_does_not_say_is_what_llama_cpp_takes_for_granted() {
    let scratch = TestDir::new("gguf-defaults");
    let read = |model: &str, split: &str| {
        let header =
            Header::new(3, 0, 3).text(b"tokenizer.ggml.model").u32(8).text(model.as_bytes());
        let header = header.text(b"tokenizer.ggml.pre").u32(8).text(split.as_bytes());
        let header = header.text(b"tokenizer.ggml.tokens").u32(9).u32(8).u64(1).text(b"a");
        open(&scratch, &header.padded(0)).unwrap().vocabulary()
    };
    let pieces = read("llama", "default").unwrap().unwrap();
    assert_eq!(pieces.encoding, GgufEncoding::Pieces { scores: Vec::new(), adds_space: true });
    assert!(pieces.adds_bos && pieces.kinds == [GgufTokenKind::Normal]);
    for (split, adds_bos) in [("llama-bpe", true), ("tekken", true), ("qwen2", false)] {
        assert_eq!(read("gpt2", split).unwrap().unwrap().adds_bos, adds_bos, "{split}");
    }
    assert_eq!(read("none", "").unwrap(), None);
    let error = read("bert", "").unwrap_err().to_string();
    assert!(error.contains("`tokenizer.ggml.model`"), "{error}");
    assert!(error.contains("is bert, expected llama, gpt2 or none"), "{error}");
}

#[test]
fn a_tensor_of_another_length_than_it_says_is_named() {
    let scratch = TestDir::new("gguf-length");
    let config = crate::config::tests::tiny_config();
    for n_bytes in [7, 9] {
        let bytes = vec![0; n_bytes];
        let source = write::GgufSource {
            name: "x".to_owned(),
            dtype: TensorDtype::F32,
            shape: vec![2],
            parts: vec![crate::TensorData::Bytes(&bytes)],
        };
        let description = write::Description { config: &config, vocabulary: None, licence: None };
        let path = scratch.path().join("model.gguf");
        let error = write::write_gguf(&path, &description, vec![source]).unwrap_err();
        let FormatError::TensorBytes { tensor, got, expected, .. } = &error else {
            panic!("{error}");
        };
        assert_eq!((tensor.as_str(), *got, *expected), ("x", n_bytes as u64, 8), "{error}");
        assert!(scratch.names().is_empty());
    }
}
