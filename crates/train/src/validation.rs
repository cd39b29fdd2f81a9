//! Bits per byte on text that was not trained on.

use data::packing::PackedBatch;
use model::{Decoder, LoadedAdapter, Workspace};
use serde::{Deserialize, Serialize};
use tensor::Device;
use tokenizer::Tokenizer;

/// Loss of a model on some text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TextLoss {
    /// Sum over the text's tokens, nats. The token that ends a document is not counted.
    pub loss_nats: f64,
    /// Tokens counted.
    pub n_tokens: u64,
    /// Bytes of the text.
    pub n_bytes: u64,
}

impl TextLoss {
    /// `loss / (ln 2 * bytes)`: comparable between tokenizers.
    #[must_use]
    pub fn bits_per_byte(&self) -> f64 {
        self.loss_nats / (std::f64::consts::LN_2 * self.n_bytes as f64)
    }
}

/// Scores documents (each beginning with BOS) by a model, with the changes of an adapter if there is one, packed into rows as large as the workspace. A document longer than the
/// context is scored in pieces that do not see one another.
#[must_use]
pub fn score_documents(
    device: &Device,
    (decoder, adapter): (&Decoder, Option<&LoadedAdapter>),
    workspace: &mut Workspace,
    tokenizer: &Tokenizer,
    documents: &[Vec<u32>],
) -> TextLoss {
    let piece_len = decoder.config().context_len.min(workspace.max_rows());
    let mut total = TextLoss::default();
    let mut batch = PackedBatch::new();
    for document in documents {
        let mut start = 0;
        while start + 1 < document.len() {
            let end = document.len().min(start + piece_len + 1);
            let piece = &document[start..end];
            if batch.n_tokens() + piece.len() - 1 > workspace.max_rows() {
                total.add_batch(device, (decoder, adapter), workspace, tokenizer, &batch);
                batch = PackedBatch::new();
            }
            batch.token_ids.extend_from_slice(&piece[..piece.len() - 1]);
            batch.targets.extend_from_slice(&piece[1..]);
            batch.segment_starts.push(batch.token_ids.len() as u32);
            start = end - 1;
        }
    }
    if batch.n_tokens() > 0 {
        total.add_batch(device, (decoder, adapter), workspace, tokenizer, &batch);
    }
    total
}

impl TextLoss {
    fn add_batch(
        &mut self,
        device: &Device,
        (decoder, adapter): (&Decoder, Option<&LoadedAdapter>),
        workspace: &mut Workspace,
        tokenizer: &Tokenizer,
        batch: &PackedBatch,
    ) {
        let (ids, targets, starts) = (&batch.token_ids, &batch.targets, &batch.segment_starts);
        let losses = decoder.adapted_token_losses(device, ids, targets, starts, adapter, workspace);
        for (loss, &target) in losses.iter().zip(targets) {
            if tokenizer.is_control(target) {
                continue;
            }
            self.loss_nats += f64::from(*loss);
            self.n_tokens += 1;
            self.n_bytes += tokenizer.token_bytes(target).map_or(0, <[u8]>::len) as u64;
        }
    }
}
