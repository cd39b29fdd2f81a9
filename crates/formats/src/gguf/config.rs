//! The decoder that the metadata of a GGUF file describes.

use crate::FormatError;
use crate::config::hf::{magnitude, shortest_pattern};
use crate::config::{DecoderConfig, Experts, QueryScaling, Rope, RopeScaling, WeightDtype};
use crate::dtype::TensorDtype;
use crate::names::{LayerPart, Layout, ROPE_DIVISORS, WeightName};

use super::vocabulary::{BOS, EOS, EOT};
use super::{GgufFile, Value, describe};

/// Architectures whose tensors and keys are those of this family. `llama` files hold Mistral, Mixtral and Llama models.
const ARCHITECTURES: [&str; 2] = ["llama", "mistral3"];

impl GgufFile {
    /// The decoder that the file describes.
    ///
    /// # Errors
    /// When it is of another architecture, or an entry is missing or has a value that this family does not compute; the
    /// error names the key.
    pub fn decoder_config(&self) -> Result<DecoderConfig, FormatError> {
        let found = self.get("general.architecture");
        let is_found = |name: &&str| found == Some(Value::Text(name.as_bytes()));
        let Some(architecture) = ARCHITECTURES.into_iter().find(is_found) else {
            let expected = format!("one of {}", ARCHITECTURES.join(", "));
            return Err(self.bad("general.architecture", found, expected));
        };
        // There is no key for biases: the tensors are the only sign.
        if let Some(name) = self.tensors.keys().find(|name| name.ends_with(".bias")) {
            let (path, field) = (self.path.clone(), format!("tensor `{name}`"));
            let (got, expected) = ("a bias".to_owned(), "a model without biases".to_owned());
            return Err(FormatError::Field { path, field, got, expected });
        }
        Keys { file: self, architecture }.config()
    }

    pub(super) fn bad(&self, key: &str, got: Option<Value<'_>>, expected: String) -> FormatError {
        let got = got.map_or_else(|| "missing".to_owned(), describe);
        let (path, field) = (self.path.clone(), key.chars().take(120).collect());
        FormatError::Field { path, field, got, expected }
    }
}

/// The entries of one architecture.
struct Keys<'a> {
    file: &'a GgufFile,
    architecture: &'a str,
}

impl Keys<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture)
    }

    fn get(&self, name: &str) -> Option<Value<'_>> {
        self.file.get(&self.key(name))
    }

    /// A whole number in `min..=max`, if it is there.
    fn optional(&self, name: &str, min: u64, max: u64) -> Result<Option<usize>, FormatError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let number = match value {
            Value::Unsigned(number) => Some(number),
            Value::Signed(number) => u64::try_from(number).ok(),
            _ => None,
        };
        let in_range = number.filter(|number| (min..=max).contains(number));
        match in_range.and_then(|number| usize::try_from(number).ok()) {
            Some(number) => Ok(Some(number)),
            None => {
                let expected = format!("a whole number {min}..={max}");
                Err(self.file.bad(&self.key(name), Some(value), expected))
            }
        }
    }

    fn required(&self, name: &str, min: u64, max: u64) -> Result<usize, FormatError> {
        self.optional(name, min, max)?.ok_or_else(|| {
            self.file.bad(&self.key(name), None, format!("a whole number {min}..={max}"))
        })
    }

    /// A number in `min..=max`, if it is there. Rounded in the file to f32.
    fn number(&self, name: &str, min: f64, max: f64) -> Result<Option<f64>, FormatError> {
        let Some(found) = self.get(name) else { return Ok(None) };
        let number = match found {
            // The decimal that was meant: 1e-5 and not 9.99999974e-6.
            Value::Float(number) => (number as f32).to_string().parse().ok(),
            _ => None,
        };
        match number.filter(|number| (min..=max).contains(number)) {
            Some(number) => Ok(Some(number)),
            None => {
                let expected = format!("a number {min:e}..={max:e}");
                Err(self.file.bad(&self.key(name), Some(found), expected))
            }
        }
    }

    fn config(&self) -> Result<DecoderConfig, FormatError> {
        let n_heads = self.required("attention.head_count", 1, 4096)?;
        let max_kv = n_heads as u64;
        let n_kv_heads = self.optional("attention.head_count_kv", 1, max_kv)?.unwrap_or(n_heads);
        let hidden_dim = self.required("embedding_length", 1, 1 << 17)?;
        let head_dim = match self.optional("attention.key_length", 2, 1024)? {
            Some(head_dim) => head_dim,
            None => hidden_dim / n_heads,
        };
        let names = ["attention.head_count_kv", "attention.key_length"];
        DecoderConfig::check_heads(&self.file.path, [n_heads, n_kv_heads, head_dim], names)?;
        self.require_computation(head_dim)?;
        let n_layers = self.required("block_count", 1, 1024)?;
        let vocab_size = self.vocab_size()?;
        let (rope, query_scaling) = self.positions(head_dim)?;
        Ok(DecoderConfig {
            vocab_size,
            hidden_dim,
            n_layers,
            n_heads,
            n_kv_heads,
            head_dim,
            ffn_dim: self.required("feed_forward_length", 1, 1 << 20)?,
            context_len: self.required("context_length", 1, 1 << 28)?,
            rope,
            query_scaling,
            rms_norm_eps: self
                .number("attention.layer_norm_rms_epsilon", 1e-12, 0.1)?
                .unwrap_or(1e-5),
            tied_embeddings: !self.file.tensors.contains_key(&WeightName::Head.name(Layout::Gguf)),
            sliding_windows: self.sliding_windows(n_layers)?,
            experts: self.experts()?,
            bos_id: self.token_id(BOS, vocab_size)?,
            eos_ids: self.eos_ids(vocab_size)?,
            dtype: self.dtype(),
        })
    }

    /// Values that change the computation and have one that this family computes with.
    fn require_computation(&self, head_dim: usize) -> Result<(), FormatError> {
        for name in ["attention.value_length", "rope.dimension_count"] {
            let found = self.optional(name, 1, 1 << 20)?;
            if let Some(got) = found.filter(|&got| got != head_dim) {
                let got = Some(Value::Unsigned(got as u64));
                let expected = format!("{head_dim}, the size of a head");
                return Err(self.file.bad(&self.key(name), got, expected));
            }
        }
        match self.get("attention.causal") {
            None | Some(Value::Bool(true)) => Ok(()),
            other => Err(self.file.bad(&self.key("attention.causal"), other, "true".to_owned())),
        }
    }

    fn vocab_size(&self) -> Result<usize, FormatError> {
        let embedding = WeightName::Embedding.name(Layout::Gguf);
        match self.file.tensors.get(&embedding).map(|tensor| tensor.shape.as_slice()) {
            Some(&[vocab_size, _]) if (1..=1 << 22).contains(&vocab_size) => Ok(vocab_size),
            Some(other) => Err(FormatError::TensorShape {
                path: self.file.path.clone(),
                tensor: embedding,
                got: other.to_vec(),
                expected: vec![self.required("embedding_length", 1, 1 << 17)?],
                axes: "(vocab_size up to 4194304, hidden_dim)",
            }),
            None => {
                Err(FormatError::TensorMissing { path: self.file.path.clone(), tensor: embedding })
            }
        }
    }

    fn positions(&self, head_dim: usize) -> Result<(Rope, Option<QueryScaling>), FormatError> {
        let theta = self.number("rope.freq_base", 1.0, 1e12)?.unwrap_or(1e4);
        let kind = match self.get("rope.scaling.type") {
            Some(Value::Text(b"none")) => "none",
            // A factor without a type is a linear one.
            None | Some(Value::Text(b"linear")) => "linear",
            Some(Value::Text(b"yarn")) => "yarn",
            other => {
                let expected = "none, linear or yarn".to_owned();
                return Err(self.file.bad(&self.key("rope.scaling.type"), other, expected));
            }
        };
        let old_factor = self.number("rope.scale_linear", 1e-3, 1e6)?;
        let factor = self.number("rope.scaling.factor", 1e-3, 1e6)?.or(old_factor);
        let scaling = match (kind, factor) {
            ("yarn", factor) => self.yarn(factor)?,
            ("linear", Some(factor)) if factor != 1.0 => RopeScaling::Linear { factor },
            _ => RopeScaling::None,
        };
        let scaling = match self.divisors(head_dim)? {
            None => scaling,
            Some(divisors) if scaling == RopeScaling::None => RopeScaling::Divided { divisors },
            Some(_) => {
                let expected = format!("no other scaling beside {ROPE_DIVISORS}");
                let got = self.get("rope.scaling.type");
                return Err(self.file.bad(&self.key("rope.scaling.type"), got, expected));
            }
        };
        let query_scaling = self.query_scaling(&scaling)?;
        Ok((Rope { theta, scaling }, query_scaling))
    }

    fn yarn(&self, factor: Option<f64>) -> Result<RopeScaling, FormatError> {
        let Some(factor) = factor else {
            let expected = "a number 0.001..=1e6".to_owned();
            return Err(self.file.bad(&self.key("rope.scaling.factor"), None, expected));
        };
        // The share of the magnitude that is taken away again (mscale_all_dim).
        let removed = self.number("rope.scaling.yarn_log_multiplier", 0.0, 1e3)?.unwrap_or(0.0);
        let given = self.number("rope.scaling.attn_factor", 1e-3, 1e3)?.unwrap_or(1.0);
        let attention_factor = match removed {
            0.0 => magnitude(factor, 1.0),
            removed => magnitude(factor, 1.0) / magnitude(factor, removed),
        };
        let beta = |name, default| Ok(self.number(name, 1e-3, 1e6)?.unwrap_or(default));
        Ok(RopeScaling::Yarn {
            factor,
            beta_fast: beta("rope.scaling.yarn_beta_fast", 32.0)?,
            beta_slow: beta("rope.scaling.yarn_beta_slow", 1.0)?,
            original_context_len: self.required(
                "rope.scaling.original_context_length",
                1,
                1 << 28,
            )?,
            attention_factor: attention_factor * given,
            is_truncated: true,
        })
    }

    fn query_scaling(&self, scaling: &RopeScaling) -> Result<Option<QueryScaling>, FormatError> {
        let Some(beta) = self.number("attention.temperature_scale", 0.0, 1e3)? else {
            return Ok(None);
        };
        if beta == 0.0 {
            return Ok(None);
        }
        let RopeScaling::Yarn { original_context_len, .. } = *scaling else {
            let expected = "a YaRN scaling, whose original context the queries grow by".to_owned();
            let got = self.get("rope.scaling.type");
            return Err(self.file.bad(&self.key("rope.scaling.type"), got, expected));
        };
        let named = self.optional("attention.temperature_length", 1, 1 << 28)?;
        let original_context_len = named.unwrap_or(original_context_len);
        Ok(Some(QueryScaling { beta, original_context_len }))
    }

    fn divisors(&self, head_dim: usize) -> Result<Option<Vec<f32>>, FormatError> {
        let Some(tensor) = self.file.tensors.get(ROPE_DIVISORS) else { return Ok(None) };
        if tensor.dtype != TensorDtype::F32 || tensor.shape != [head_dim / 2] {
            return Err(FormatError::TensorShape {
                path: self.file.path.clone(),
                tensor: ROPE_DIVISORS.to_owned(),
                got: tensor.shape.clone(),
                expected: vec![head_dim / 2],
                axes: "(head_dim / 2, in F32)",
            });
        }
        let mut divisors = vec![0.0; head_dim / 2];
        tensor.dtype.read_f32(self.file.bytes(tensor), &mut divisors);
        match divisors.iter().find(|divisor| !(1e-6..=1e6).contains(*divisor)) {
            None => Ok(Some(divisors)),
            Some(&bad) => {
                let got = Some(Value::Float(bad.into()));
                Err(self.file.bad(ROPE_DIVISORS, got, "numbers 1e-6..=1e6".to_owned()))
            }
        }
    }

    /// A width, and optionally which layers have it.
    fn sliding_windows(&self, n_layers: usize) -> Result<Vec<Option<usize>>, FormatError> {
        let width = self.optional("attention.sliding_window", 0, 1 << 28)?.filter(|&w| w > 0);
        let Some(width) = width else { return Ok(Vec::new()) };
        let name = "attention.sliding_window_pattern";
        let Some(pattern) = self.get(name) else { return Ok(vec![Some(width)]) };
        let layers: Option<Vec<Option<usize>>> = match pattern {
            Value::Array(array) if array.len() == n_layers => array
                .iter()
                .map(|value| match value {
                    Value::Bool(has_window) => Some(has_window.then_some(width)),
                    _ => None,
                })
                .collect(),
            _ => None,
        };
        match layers.filter(|layers| layers.len() == n_layers) {
            Some(layers) => Ok(shortest_pattern(layers)),
            None => {
                let expected = format!("{n_layers} times true or false");
                Err(self.file.bad(&self.key(name), Some(pattern), expected))
            }
        }
    }

    fn experts(&self) -> Result<Option<Experts>, FormatError> {
        let Some(n_experts) = self.optional("expert_count", 0, 1024)?.filter(|&n| n > 0) else {
            return Ok(None);
        };
        let n_active = self.required("expert_used_count", 1, n_experts as u64)?;
        Ok(Some(Experts { n_experts, n_active }))
    }

    fn token_id(&self, key: &str, vocab_size: usize) -> Result<Option<u32>, FormatError> {
        match self.file.get(key) {
            None => Ok(None),
            Some(Value::Unsigned(id)) if id < vocab_size as u64 => Ok(u32::try_from(id).ok()),
            other => Err(self.file.bad(key, other, format!("a token id below {vocab_size}"))),
        }
    }

    fn eos_ids(&self, vocab_size: usize) -> Result<Vec<u32>, FormatError> {
        let mut ids = Vec::new();
        for key in [EOS, EOT] {
            ids.extend(self.token_id(key, vocab_size)?);
        }
        ids.dedup();
        Ok(ids)
    }

    /// The number type to compute in: that of the file's matrices where they are plain numbers of one type, else bf16.
    fn dtype(&self) -> WeightDtype {
        // Routers are in f32 whatever the others are.
        let router = LayerPart::Router.name(Layout::Gguf);
        let is_matrix = |name: &str, shape: &[usize]| shape.len() > 1 && !name.ends_with(&router);
        let matrices =
            self.file.tensors.iter().filter(|(name, tensor)| is_matrix(name, &tensor.shape));
        let mut types: Vec<TensorDtype> = matrices.map(|(_, tensor)| tensor.dtype).collect();
        types.dedup();
        match types.as_slice() {
            [TensorDtype::F32] => WeightDtype::F32,
            [TensorDtype::F16] => WeightDtype::F16,
            _ => WeightDtype::Bf16,
        }
    }
}
