//! Writing GGUF files, version 3.

use std::io::{self, Write};
use std::path::Path;

use crate::FormatError;
use crate::config::hf::has_yarn_magnitude;
use crate::config::{DecoderConfig, RopeScaling};
use crate::dtype::TensorDtype;
use crate::durable::write_atomically;
use crate::names::{Layout, ROPE_DIVISORS};
use crate::weights::{Counted, TensorData};

use super::LICENCE;
use super::vocabulary::{self, BOS, EOS, EOT, GgufVocabulary};

/// Alignment of tensors.
const ALIGNMENT: u64 = 32;

/// A tensor to be written, in parts that follow one another along the slowest axis.
pub(crate) struct GgufSource<'a> {
    pub(crate) name: String,
    pub(crate) dtype: TensorDtype,
    /// Slowest axis first.
    pub(crate) shape: Vec<usize>,
    pub(crate) parts: Vec<TensorData<'a>>,
}

impl GgufSource<'_> {
    fn n_bytes(&self) -> u64 {
        self.dtype.bytes_of(self.shape.iter().product()) as u64
    }
}

/// What a file says of its model before the tensors.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Description<'a> {
    pub(crate) config: &'a DecoderConfig,
    pub(crate) vocabulary: Option<&'a GgufVocabulary>,
    /// The licence of the weights, where it is known.
    pub(crate) licence: Option<&'a str>,
}

/// Writes a file atomically: the description, then the tensors in the order given.
///
/// # Errors
/// When a setting has no key, or writing fails; nothing is left behind.
pub(crate) fn write_gguf(
    path: &Path,
    description: &Description<'_>,
    mut tensors: Vec<GgufSource<'_>>,
) -> Result<(), FormatError> {
    let mut entries = Entries::default();
    describe(&mut entries, description).map_err(|setting| FormatError::NotInLayout {
        path: path.to_owned(),
        setting,
        layout: Layout::Gguf.title(),
    })?;
    if let Some(divisors) = divisors(description.config) {
        tensors.push(GgufSource {
            name: ROPE_DIVISORS.to_owned(),
            dtype: TensorDtype::F32,
            shape: vec![divisors.len()],
            parts: vec![TensorData::Stream(Box::new(move |out| {
                divisors.iter().try_for_each(|divisor| out.write_all(&divisor.to_le_bytes()))
            }))],
        });
    }
    let header = header(&entries, &tensors);
    write_atomically(path, |out| write_all(out, path, &header, tensors))
}

/// The entries before the tensors.
#[derive(Default)]
pub(super) struct Entries {
    n: u64,
    bytes: Vec<u8>,
}

impl Entries {
    fn key(&mut self, key: &str, kind: u32) {
        self.n += 1;
        put_text(&mut self.bytes, key);
        self.bytes.extend(kind.to_le_bytes());
    }

    fn u32(&mut self, key: &str, value: usize) {
        self.key(key, 4);
        let value = u32::try_from(value).expect("sizes of a checked configuration fit u32");
        self.bytes.extend(value.to_le_bytes());
    }

    fn f32(&mut self, key: &str, value: f64) {
        self.key(key, 6);
        self.bytes.extend((value as f32).to_le_bytes());
    }

    pub(super) fn text(&mut self, key: &str, value: &str) {
        self.key(key, 8);
        put_text(&mut self.bytes, value);
    }

    pub(super) fn flag(&mut self, key: &str, value: bool) {
        self.key(key, 7);
        self.bytes.push(u8::from(value));
    }

    fn list(&mut self, key: &str, kind: u32, len: usize) {
        self.key(key, 9);
        self.bytes.extend(kind.to_le_bytes());
        self.bytes.extend((len as u64).to_le_bytes());
    }

    fn flags(&mut self, key: &str, values: &[bool]) {
        self.list(key, 7, values.len());
        self.bytes.extend(values.iter().map(|&value| u8::from(value)));
    }

    pub(super) fn i32s(&mut self, key: &str, values: &[i32]) {
        self.list(key, 5, values.len());
        self.bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    }

    pub(super) fn f32s(&mut self, key: &str, values: &[f32]) {
        self.list(key, 6, values.len());
        self.bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    }

    pub(super) fn texts(&mut self, key: &str, values: &[String]) {
        self.list(key, 8, values.len());
        values.iter().for_each(|value| put_text(&mut self.bytes, value));
    }
}

fn put_text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}

/// What llama.cpp's converter writes of this family.
fn describe(entries: &mut Entries, description: &Description<'_>) -> Result<(), &'static str> {
    let Description { config, vocabulary, licence } = *description;
    let arch = if config.query_scaling.is_some() { "mistral3" } else { "llama" };
    let key = |name: &str| format!("{arch}.{name}");
    entries.text("general.architecture", arch);
    entries.u32("general.alignment", ALIGNMENT as usize);
    if let Some(licence) = licence {
        entries.text(LICENCE, licence);
    }
    let counts = [
        ("vocab_size", config.vocab_size),
        ("context_length", config.context_len),
        ("embedding_length", config.hidden_dim),
        ("block_count", config.n_layers),
        ("feed_forward_length", config.ffn_dim),
        ("attention.head_count", config.n_heads),
        ("attention.head_count_kv", config.n_kv_heads),
        ("attention.key_length", config.head_dim),
        ("attention.value_length", config.head_dim),
        ("rope.dimension_count", config.head_dim),
    ];
    for (name, count) in counts {
        entries.u32(&key(name), count);
    }
    entries.f32(&key("attention.layer_norm_rms_epsilon"), config.rms_norm_eps);
    entries.f32(&key("rope.freq_base"), config.rope.theta);
    describe_scaling(entries, config, key)?;
    if let Some(experts) = config.experts {
        entries.u32(&key("expert_count"), experts.n_experts);
        entries.u32(&key("expert_used_count"), experts.n_active);
    }
    if let Some(window) = config.sliding_windows.iter().flatten().next() {
        entries.u32(&key("attention.sliding_window"), *window);
        if config.sliding_windows.len() > 1 {
            let layers: Vec<bool> =
                (0..config.n_layers).map(|idx| config.sliding_window(idx).is_some()).collect();
            entries.flags(&key("attention.sliding_window_pattern"), &layers);
        }
    }
    vocabulary::write(entries, vocabulary, config.vocab_size);
    let bos_id = config.bos_id.or_else(|| vocabulary?.bos_id);
    if let Some(bos_id) = bos_id {
        entries.u32(BOS, bos_id as usize);
    }
    // That of the vocabulary first: the model's list is sorted.
    let mut eos_ids = config.eos_ids.clone();
    if let Some(eos_id) = vocabulary.and_then(|known| known.eos_id) {
        eos_ids.retain(|&id| id != eos_id);
        eos_ids.insert(0, eos_id);
    }
    for (key, eos_id) in [EOS, EOT].into_iter().zip(eos_ids) {
        entries.u32(key, eos_id as usize);
    }
    Ok(())
}

fn describe_scaling(
    entries: &mut Entries,
    config: &DecoderConfig,
    key: impl Fn(&str) -> String,
) -> Result<(), &'static str> {
    match config.rope.scaling {
        // Llama 3's is a tensor.
        RopeScaling::None | RopeScaling::Llama3 { .. } | RopeScaling::Divided { .. } => {}
        RopeScaling::Linear { factor } => {
            entries.text(&key("rope.scaling.type"), "linear");
            entries.f32(&key("rope.scaling.factor"), factor);
        }
        RopeScaling::Yarn {
            factor,
            beta_fast,
            beta_slow,
            original_context_len,
            attention_factor,
            is_truncated,
        } => {
            let has_magnitude = has_yarn_magnitude(factor, attention_factor, is_truncated)?;
            entries.text(&key("rope.scaling.type"), "yarn");
            entries.f32(&key("rope.scaling.factor"), factor);
            entries.u32(&key("rope.scaling.original_context_length"), original_context_len);
            entries.f32(&key("rope.scaling.yarn_beta_fast"), beta_fast);
            entries.f32(&key("rope.scaling.yarn_beta_slow"), beta_slow);
            let removed = if has_magnitude { 0.0 } else { 1.0 };
            entries.f32(&key("rope.scaling.yarn_log_multiplier"), removed);
        }
    }
    if let Some(scaling) = config.query_scaling {
        entries.f32(&key("attention.temperature_scale"), scaling.beta);
        entries.u32(&key("attention.temperature_length"), scaling.original_context_len);
    }
    Ok(())
}

/// The divisors of the rotary frequencies, where they are a tensor of the file.
fn divisors(config: &DecoderConfig) -> Option<Vec<f32>> {
    match config.rope.scaling {
        RopeScaling::Divided { ref divisors } => Some(divisors.clone()),
        RopeScaling::Llama3 { .. } => {
            Some(config.rope.divisors(config.head_dim).into_iter().map(|d| d as f32).collect())
        }
        _ => None,
    }
}

fn header(entries: &Entries, tensors: &[GgufSource<'_>]) -> Vec<u8> {
    let mut bytes = b"GGUF".to_vec();
    bytes.extend(3_u32.to_le_bytes());
    bytes.extend((tensors.len() as u64).to_le_bytes());
    bytes.extend(entries.n.to_le_bytes());
    bytes.extend(&entries.bytes);
    let mut offset = 0_u64;
    for tensor in tensors {
        put_text(&mut bytes, &tensor.name);
        bytes.extend((tensor.shape.len() as u32).to_le_bytes());
        for &axis in tensor.shape.iter().rev() {
            bytes.extend((axis as u64).to_le_bytes());
        }
        let number = tensor.dtype.ggml().expect("the converter chose a type that GGUF files have");
        bytes.extend(number.to_le_bytes());
        bytes.extend(offset.to_le_bytes());
        offset += tensor.n_bytes().next_multiple_of(ALIGNMENT);
    }
    bytes.resize(bytes.len().next_multiple_of(ALIGNMENT as usize), 0);
    bytes
}

fn write_all(
    out: &mut dyn Write,
    path: &Path,
    header: &[u8],
    tensors: Vec<GgufSource<'_>>,
) -> io::Result<()> {
    out.write_all(header)?;
    for tensor in tensors {
        let n_bytes = tensor.n_bytes();
        let mut counted = Counted::new(&mut *out, n_bytes);
        let result = tensor.parts.into_iter().try_for_each(|part| match part {
            TensorData::Bytes(bytes) => counted.write_all(bytes),
            TensorData::Stream(write) => write(&mut counted),
            TensorData::F32(_) => unreachable!("the converter writes bytes"),
        });
        counted.check(result, path, &tensor.name)?;
        let padding = n_bytes.next_multiple_of(ALIGNMENT) - n_bytes;
        out.write_all(&[0; ALIGNMENT as usize][..padding as usize])?;
    }
    Ok(())
}
