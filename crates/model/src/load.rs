//! Loading a decoder weight by weight, for serving and scoring.

use std::ops::Range;

use formats::{FfnPart as Projection, LayerPart, WeightName};
use half::bf16;
use tensor::{DType, Device, Linear, Passes, Tensor, View};

use crate::config::ModelConfig;
use crate::decoder::Decoder;
use crate::experts::{FeedForward, FfnPart};

/// Rows of a matrix that are in memory as f32 at a time; whole panels.
const ROWS_AT_A_TIME: usize = 512;

impl Decoder {
    /// A decoder for serving and scoring. `read(name, rows, out)` fills `out` with some rows of a weight, row-major; a vector is
    /// one row. Beside the decoder, memory holds a few hundred rows.
    ///
    /// # Errors
    /// When `read` fails.
    pub fn load<E>(
        device: &Device,
        config: &ModelConfig,
        dtype: DType,
        read: impl FnMut(WeightName, Range<usize>, &mut [f32]) -> Result<(), E>,
    ) -> Result<Self, E> {
        let mut decoder = Self::zeroed(config, dtype, Passes::Forward);
        let mut loader = Loader { device, config, dtype, read, rows: Vec::new() };
        loader.matrix(&mut decoder.embedding, &[WeightName::Embedding])?;
        for (layer_idx, layer) in decoder.layers.iter_mut().enumerate() {
            let name = |part| WeightName::Layer { layer_idx, part };
            loader.norm(&mut layer.attention_norm, name(LayerPart::AttentionNorm))?;
            let qkv = [LayerPart::Query, LayerPart::Key, LayerPart::Value].map(name);
            loader.matrix(&mut layer.qkv, &qkv)?;
            loader.matrix(&mut layer.attention_out, &[name(LayerPart::AttentionOut)])?;
            loader.norm(&mut layer.ffn_norm, name(LayerPart::FfnNorm))?;
            match &mut layer.ffn {
                FfnPart::Dense(ffn) => loader.block(ffn, |part| name(LayerPart::Ffn(part)))?,
                FfnPart::Experts { router, experts } => {
                    loader.matrix(router, &[name(LayerPart::Router)])?;
                    for (expert_idx, ffn) in experts.iter_mut().enumerate() {
                        loader.block(ffn, |part| name(LayerPart::Expert { expert_idx, part }))?;
                    }
                }
            }
        }
        loader.norm(&mut decoder.final_norm, WeightName::FinalNorm)?;
        if let Some(head) = &mut decoder.head {
            loader.matrix(head, &[WeightName::Head])?;
        }
        Ok(decoder)
    }
}

struct Loader<'a, R> {
    device: &'a Device,
    config: &'a ModelConfig,
    dtype: DType,
    read: R,
    rows: Vec<f32>,
}

impl<R, E> Loader<'_, R>
where
    R: FnMut(WeightName, Range<usize>, &mut [f32]) -> Result<(), E>,
{
    fn block(
        &mut self,
        ffn: &mut FeedForward,
        name: impl Fn(Projection) -> WeightName,
    ) -> Result<(), E> {
        self.matrix(&mut ffn.gate_up, &[Projection::Gate, Projection::Up].map(&name))?;
        self.matrix(&mut ffn.down, &[name(Projection::Down)])
    }

    /// A matrix made of the rows of one or several weights, one after the other.
    fn matrix(&mut self, out: &mut Linear, parts: &[WeightName]) -> Result<(), E> {
        let n_rows_of = |name: &WeightName| name.shape(self.config)[0];
        let lens: Vec<usize> = parts.iter().map(n_rows_of).collect();
        let (n_rows, width) = (lens.iter().sum::<usize>(), out.n_in());
        for first in (0..n_rows).step_by(ROWS_AT_A_TIME) {
            let chunk = first..n_rows.min(first + ROWS_AT_A_TIME);
            self.rows.resize(chunk.len() * width, 0.0);
            let mut part_start = 0;
            for (&name, &len) in parts.iter().zip(&lens) {
                let part = part_start..part_start + len;
                let shared = chunk.start.max(part.start)..chunk.end.min(part.end);
                if !shared.is_empty() {
                    let out =
                        (shared.start - chunk.start) * width..(shared.end - chunk.start) * width;
                    let rows = shared.start - part.start..shared.end - part.start;
                    (self.read)(name, rows, &mut self.rows[out])?;
                }
                part_start = part.end;
            }
            out.pack_rows(self.device, first, View::F32 { values: &self.rows, width });
        }
        Ok(())
    }

    fn norm(&mut self, out: &mut Tensor, name: WeightName) -> Result<(), E> {
        (self.read)(name, 0..1, out.f32_mut())?;
        round_norm(out, self.dtype);
        Ok(())
    }
}

/// Norm weights are f32, but hold what the model's number type can hold: a bf16 model means bf16 norm weights.
pub(crate) fn round_norm(norm: &mut Tensor, dtype: DType) {
    if dtype == DType::Bf16 {
        norm.f32_mut().iter_mut().for_each(|value| *value = bf16::from_f32(*value).to_f32());
    }
}
