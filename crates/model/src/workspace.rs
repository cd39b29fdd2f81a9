//! The planned memory of a forward pass.

use kernels::attention::CacheKind;
use tensor::{
    DType, Device, KeyBlocks, LowRankScratch, OperandScratch, PackedRows, Passes, PinnedNumbers,
    RopeTable, Tensor,
};

use crate::adapted::{LoadedAdapter, even};
use crate::adapter_parameters::AdapterSettings;
use crate::config::ModelConfig;
use crate::decoder::Decoder;
use crate::feed_forward::ExpertWorkspace;

/// What one layer leaves behind. `T` stands for the decoder's number type, `A` for that of the inputs of products: the same, but f32
/// where products with packed blocks round them.
#[derive(Debug)]
pub(crate) struct LayerActivations {
    /// Input of the layer, A `[tokens, hidden]`; only kept for a backward pass, where the device keeps inputs of norms.
    pub(crate) attention_input: Option<Tensor>,
    /// Its inverse root mean square, `[tokens, 1]`.
    pub(crate) attention_scales: Tensor,
    /// Normed input, A `[tokens, hidden]`.
    pub(crate) attention_normed: Tensor,
    /// Rotated queries and keys, and values, T `[tokens, (n_heads + 2 n_kv_heads) head_dim]`.
    pub(crate) qkv: Tensor,
    /// A `[tokens, n_heads head_dim]`.
    pub(crate) attention_out: Tensor,
    /// `[tokens, n_heads]`.
    pub(crate) log_sum_exp: Tensor,
    /// Input of the feed-forward part, A `[tokens, hidden]`; kept where that of the layer is.
    pub(crate) ffn_input: Option<Tensor>,
    /// `[tokens, 1]`.
    pub(crate) ffn_scales: Tensor,
    /// A `[tokens, hidden]`.
    pub(crate) ffn_normed: Tensor,
    /// Gate and up, A `[tokens, 2 ffn]`.
    pub(crate) gate_up: Tensor,
    /// The gated activation, A `[tokens, ffn]`; only kept for a backward pass, where the device keeps it.
    pub(crate) activated: Option<Tensor>,
}

impl LayerActivations {
    fn new(device: &Device, room: Room<'_>) -> Self {
        let Room { config, dtype, activations, max_rows, .. } = room;
        let (hidden, shape) = (config.hidden_dim, config.head_shape());
        let keeps_inputs = room.keeps_inputs(device);
        let zeroed = |dtype, width| Tensor::zeroed_on(device, dtype, max_rows, width);
        let operand = |width| zeroed(activations, width);
        let scales = || zeroed(DType::F32, 1);
        Self {
            attention_input: keeps_inputs.then(|| operand(hidden)),
            attention_scales: scales(),
            attention_normed: operand(hidden),
            qkv: zeroed(dtype, shape.qkv_width()),
            attention_out: operand(shape.n_heads * shape.head_dim),
            log_sum_exp: zeroed(DType::F32, shape.n_heads),
            ffn_input: keeps_inputs.then(|| operand(hidden)),
            ffn_scales: scales(),
            ffn_normed: operand(hidden),
            gate_up: operand(2 * config.ffn_dim),
            activated: room.keeps_activated(device).then(|| operand(config.ffn_dim)),
        }
    }

    fn n_bytes(&self) -> usize {
        let Self {
            attention_input,
            attention_scales,
            attention_normed,
            qkv,
            attention_out,
            log_sum_exp,
            ffn_input,
            ffn_scales,
            ffn_normed,
            gate_up,
            activated,
        } = self;
        let kept = [attention_input, ffn_input, activated].into_iter().flatten();
        let tensors = kept.chain([
            attention_scales,
            attention_normed,
            qkv,
            attention_out,
            log_sum_exp,
            ffn_scales,
            ffn_normed,
            gate_up,
        ]);
        tensors.map(Tensor::n_bytes).sum()
    }

    fn tensors_mut(&mut self) -> impl Iterator<Item = &mut Tensor> {
        let kept = [&mut self.attention_input, &mut self.ffn_input, &mut self.activated];
        kept.into_iter().flatten().chain([
            &mut self.attention_scales,
            &mut self.attention_normed,
            &mut self.qkv,
            &mut self.attention_out,
            &mut self.log_sum_exp,
            &mut self.ffn_scales,
            &mut self.ffn_normed,
            &mut self.gate_up,
        ])
    }
}

/// Key blocks of packed documents of 16 tokens or more on average: each begins a block of its own. A batch of shorter
/// ones makes the blocks grow.
fn planned_key_blocks(max_rows: usize) -> usize {
    max_rows.div_ceil(kernels::attention::KEY_BLOCK) + max_rows.div_ceil(16)
}

/// Numbers of the widest input of a product.
fn widest_input(config: &ModelConfig) -> usize {
    let shape = config.head_shape();
    config.hidden_dim.max(config.ffn_dim).max(shape.n_heads * shape.head_dim)
}

/// All memory of a forward pass over up to `max_rows` tokens, taken once.
#[derive(Debug)]
pub struct Workspace {
    max_rows: usize,
    /// The residual stream, f32 `[tokens, hidden]`.
    pub(crate) residual: Tensor,
    /// Output of the query, key and value product, f32; none where the device works in its place.
    pub(crate) qkv: Option<Tensor>,
    /// The gated activation, A `[tokens, ffn]`; none where each layer keeps its own.
    pub(crate) activated: Option<Tensor>,
    /// One for all layers, or one for each when a backward pass follows.
    pub(crate) layers: Vec<LayerActivations>,
    /// Input of the final norm, A; kept where those of the layers are.
    pub(crate) final_input: Option<Tensor>,
    /// `[tokens, 1]`.
    pub(crate) final_scales: Tensor,
    /// A `[tokens, hidden]`.
    pub(crate) final_normed: Tensor,
    /// f32 `[rows, vocab]`, a chunk of the tokens.
    pub(crate) logits: Tensor,
    /// The same in this machine's memory, where a GPU computed them.
    pub(crate) host_logits: PinnedNumbers,
    /// `[tokens, 1]`.
    pub(crate) losses: Tensor,
    /// Position of each token in its sequence, and what rotates it.
    pub(crate) positions: Vec<u32>,
    pub(crate) rope: RopeTable,
    /// For a model with experts.
    pub(crate) experts: Option<ExpertWorkspace>,
    pub(crate) n_active_experts: usize,
    /// For a decoder beside which adapters may be computed: one that serves, or is trained so.
    pub(crate) low_rank: Option<LowRankScratch>,
    /// For a decoder with packed blocks.
    pub(crate) operands: OperandScratch,
    /// Of packed documents, for one layer at a time.
    pub(crate) key_blocks: KeyBlocks,
    /// The documents of the last batch of packed documents, for its backward pass.
    pub(crate) packed: Option<PackedRows>,
}

/// What a workspace has room for.
#[derive(Clone, Copy)]
struct Room<'a> {
    config: &'a ModelConfig,
    /// Number type of queries, keys and values.
    dtype: DType,
    /// Number type of the inputs of products.
    activations: DType,
    max_rows: usize,
    passes: Passes,
}

impl Room<'_> {
    fn n_layers(self) -> usize {
        match self.passes {
            Passes::Forward => 1,
            Passes::ForwardAndBackward => self.config.n_layers,
        }
    }

    fn keeps_inputs(self, device: &Device) -> bool {
        self.passes == Passes::ForwardAndBackward && device.keeps_norm_inputs()
    }

    fn keeps_activated(self, device: &Device) -> bool {
        self.passes == Passes::ForwardAndBackward && device.keeps_activated()
    }

    fn workspace(self, device: &Device) -> Workspace {
        let Self { config, dtype, activations, max_rows, .. } = self;
        let keeps_inputs = self.keeps_inputs(device);
        let (hidden, ffn, shape) = (config.hidden_dim, config.ffn_dim, config.head_shape());
        let zeroed = |dtype, n_rows, width| Tensor::zeroed_on(device, dtype, n_rows, width);
        let f32_rows = |width| zeroed(DType::F32, max_rows, width);
        let input = |width| zeroed(activations, max_rows, width);
        // Attention on a GPU reads the keys and values of documents from their rows.
        let key_blocks = if device.works_in_place() { 0 } else { planned_key_blocks(max_rows) };
        let kind = CacheKind::Operands;
        let workspace = Workspace {
            max_rows,
            residual: f32_rows(hidden),
            qkv: (!device.works_in_place()).then(|| f32_rows(shape.qkv_width())),
            activated: (!self.keeps_activated(device)).then(|| input(ffn)),
            layers: (0..self.n_layers()).map(|_| LayerActivations::new(device, self)).collect(),
            final_input: keeps_inputs.then(|| input(hidden)),
            final_scales: f32_rows(1),
            final_normed: input(hidden),
            logits: zeroed(DType::F32, max_rows.min(device.logit_rows()), config.vocab_size),
            host_logits: PinnedNumbers::default(),
            losses: f32_rows(1),
            positions: Vec::with_capacity(max_rows),
            rope: RopeTable::with_capacity(max_rows, config.head_dim),
            experts: ExpertWorkspace::new(device, config, activations, max_rows),
            n_active_experts: config.experts.map_or(0, |experts| experts.n_active),
            low_rank: None,
            operands: OperandScratch::none(),
            key_blocks: KeyBlocks::zeroed(device, dtype, kind, shape, key_blocks),
            packed: None,
        };
        if let Device::Cpu(_) = device {
            debug_assert_eq!(
                workspace.n_bytes(),
                self.n_bytes(),
                "bytes of a workspace as planned"
            );
        }
        workspace
    }

    /// Bytes of it where the processors compute.
    fn n_bytes(self) -> usize {
        let Self { config, dtype, activations, max_rows, passes } = self;
        let (hidden, ffn, shape) = (config.hidden_dim, config.ffn_dim, config.head_shape());
        let (qkv, out) = (shape.qkv_width(), shape.n_heads * shape.head_dim);
        let kept = if passes == Passes::ForwardAndBackward { hidden } else { 0 };
        let n_layers = self.n_layers();
        let inputs = n_layers * (2 * kept + 2 * hidden + out + 2 * ffn) + ffn + kept + hidden;
        let f32s = n_layers * (2 + shape.n_heads) + hidden + qkv + 2;
        let block_bytes = KeyBlocks::block_bytes(dtype, CacheKind::Operands, shape);
        max_rows * (inputs * activations.bytes() + n_layers * qkv * dtype.bytes() + f32s * 4)
            + max_rows.min(Device::CPU_LOGIT_ROWS) * config.vocab_size * 4
            + planned_key_blocks(max_rows) * block_bytes
            + max_rows * size_of::<u32>()
            + RopeTable::bytes_for(max_rows, config.head_dim)
            + ExpertWorkspace::bytes_for(config, activations, max_rows)
    }
}

impl Workspace {
    /// Room for up to `max_rows` tokens, for decoders without packed blocks. For a backward pass the activations of every layer are
    /// kept, else those of one at a time.
    #[must_use]
    pub fn new(
        device: &Device,
        config: &ModelConfig,
        dtype: DType,
        max_rows: usize,
        passes: Passes,
    ) -> Self {
        Room { config, dtype, activations: dtype, max_rows, passes }.workspace(device)
    }

    /// Room for the training of an adapter, with the activations of every layer.
    #[must_use]
    pub fn for_adapter(
        device: &Device,
        config: &ModelConfig,
        settings: &AdapterSettings,
        dtype: DType,
        max_rows: usize,
    ) -> Self {
        let low_rank = LowRankScratch::new(device, dtype, max_rows, even(settings.rank));
        let workspace = Self::new(device, config, dtype, max_rows, Passes::ForwardAndBackward);
        Self { low_rank: Some(low_rank), ..workspace }
    }

    /// Bytes of [`Workspace::for_adapter`] where the processors compute.
    #[must_use]
    pub fn bytes_for_adapter(
        config: &ModelConfig,
        settings: &AdapterSettings,
        dtype: DType,
        max_rows: usize,
    ) -> usize {
        Self::bytes_for(config, dtype, max_rows, Passes::ForwardAndBackward)
            + LowRankScratch::bytes_for(dtype, max_rows, even(settings.rank))
    }

    /// Bytes of [`Workspace::new`] where the processors compute.
    #[must_use]
    pub fn bytes_for(config: &ModelConfig, dtype: DType, max_rows: usize, passes: Passes) -> usize {
        Room { config, dtype, activations: dtype, max_rows, passes }.n_bytes()
    }

    /// Room for the forward pass of a decoder, with its packed blocks if it has them, and of adapters.
    #[must_use]
    pub fn for_decoder(decoder: &Decoder, max_rows: usize) -> Self {
        let (config, dtype, passes) = (decoder.config(), decoder.dtype(), Passes::Forward);
        let (activations, operands) = match decoder.has_packed_blocks() {
            true => (DType::F32, OperandScratch::new(max_rows, widest_input(config))),
            false => (dtype, OperandScratch::none()),
        };
        let low_rank = Some(LoadedAdapter::scratch(&decoder.device, dtype, max_rows));
        let workspace = Room { config, dtype, activations, max_rows, passes };
        let workspace = workspace.workspace(&decoder.device);
        Self { low_rank, operands, ..workspace }
    }

    /// Most bytes of [`Workspace::for_decoder`], whatever its weights.
    #[must_use]
    pub fn max_bytes_for_decoder(config: &ModelConfig, dtype: DType, max_rows: usize) -> usize {
        let (activations, passes) = (DType::F32, Passes::Forward);
        Room { config, dtype, activations, max_rows, passes }.n_bytes()
            + OperandScratch::bytes_for(max_rows, widest_input(config))
            + LoadedAdapter::scratch_bytes(dtype, max_rows)
    }

    /// Bytes that it holds: as planned, but for key blocks of a batch of very short documents.
    pub(crate) fn n_bytes(&self) -> usize {
        let Self {
            max_rows: _,
            residual,
            qkv,
            activated,
            layers,
            final_input,
            final_scales,
            final_normed,
            logits,
            host_logits,
            losses,
            positions,
            rope,
            experts,
            n_active_experts: _,
            low_rank,
            operands,
            key_blocks,
            packed: _,
        } = self;
        let tensors = [residual, final_scales, final_normed, logits, losses];
        let some = [qkv, activated, final_input].into_iter().flatten();
        tensors.into_iter().chain(some).map(Tensor::n_bytes).sum::<usize>()
            + layers.iter().map(LayerActivations::n_bytes).sum::<usize>()
            + host_logits.n_bytes()
            + positions.capacity() * size_of::<u32>()
            + rope.n_bytes()
            + experts.as_ref().map_or(0, ExpertWorkspace::n_bytes)
            + low_rank.as_ref().map_or(0, LowRankScratch::n_bytes)
            + operands.n_bytes()
            + key_blocks.n_bytes()
    }

    /// Tokens that there is room for.
    #[must_use]
    pub fn max_rows(&self) -> usize {
        self.max_rows
    }

    /// The loss of each token of the last batch that was learnt or scored, in nats, f32 `[tokens, 1]`; of those that are learnt 0 where
    /// the weight is 0.
    #[must_use]
    pub fn losses(&self) -> &Tensor {
        &self.losses
    }

    /// Uses `n_rows` rows of every tensor.
    ///
    /// # Panics
    /// When there is no room for them.
    pub(crate) fn set_rows(&mut self, n_rows: usize) {
        assert!(n_rows <= self.max_rows, "{n_rows} tokens in a workspace for {}", self.max_rows);
        for layer in &mut self.layers {
            layer.tensors_mut().for_each(|tensor| tensor.set_rows(n_rows));
        }
        let own =
            [&mut self.residual, &mut self.final_scales, &mut self.final_normed, &mut self.losses];
        let some = [&mut self.qkv, &mut self.activated, &mut self.final_input];
        own.into_iter()
            .chain(some.into_iter().flatten())
            .for_each(|tensor| tensor.set_rows(n_rows));
    }
}
