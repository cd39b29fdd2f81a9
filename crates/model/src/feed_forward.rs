//! The feed-forward part of a layer: one block, or routed experts.

use kernels::experts::Routes;
use kernels::matmul::Write;
use tensor::{
    DType, Device, Linear, LowRankScratch, OperandScratch, Passes, PinnedNumbers, Tensor, ops,
};

use crate::adapted::{self, AdaptedProduct, AdaptedRows};
use crate::config::ModelConfig;
use crate::workspace::{LayerActivations, Workspace};

/// `W_down (silu(W_gate x) * W_up x)`; shapes as in the parameters of the same names.
#[derive(Clone, Debug)]
pub(crate) struct FfnBlock {
    pub(crate) gate_up: Linear,
    pub(crate) down: Linear,
}

impl FfnBlock {
    pub(crate) fn zeroed(
        device: &Device,
        config: &ModelConfig,
        dtype: DType,
        passes: Passes,
    ) -> Self {
        let linear = |n_out, n_in| Linear::zeroed(device, dtype, n_out, n_in, passes);
        Self {
            gate_up: linear(2 * config.ffn_dim, config.hidden_dim),
            down: linear(config.hidden_dim, config.ffn_dim),
        }
    }

    pub(crate) fn bytes_for(config: &ModelConfig, dtype: DType, passes: Passes) -> usize {
        Linear::bytes_for(dtype, 2 * config.ffn_dim, config.hidden_dim, passes)
            + Linear::bytes_for(dtype, config.hidden_dim, config.ffn_dim, passes)
    }
}

/// The feed-forward part of a layer.
#[derive(Clone, Debug)]
pub(crate) enum FeedForward {
    /// One block for all tokens.
    Dense(FfnBlock),
    /// Routed experts.
    Experts {
        /// `[n_experts, hidden]`.
        router: Linear,
        experts: Vec<FfnBlock>,
    },
}

impl FeedForward {
    pub(crate) fn zeroed(
        device: &Device,
        config: &ModelConfig,
        dtype: DType,
        passes: Passes,
    ) -> Self {
        let block = || FfnBlock::zeroed(device, config, dtype, passes);
        match config.experts {
            None => Self::Dense(block()),
            Some(experts) => Self::Experts {
                router: Linear::zeroed(device, dtype, experts.n_experts, config.hidden_dim, passes),
                experts: (0..experts.n_experts).map(|_| block()).collect(),
            },
        }
    }

    pub(crate) fn bytes_for(config: &ModelConfig, dtype: DType, passes: Passes) -> usize {
        let block = FfnBlock::bytes_for(config, dtype, passes);
        match config.experts {
            None => block,
            Some(experts) => {
                let n_experts = experts.n_experts;
                Linear::bytes_for(dtype, n_experts, config.hidden_dim, passes) + n_experts * block
            }
        }
    }

    /// Bytes of the buffers that it holds.
    pub(crate) fn n_bytes(&self) -> usize {
        let of = |block: &FfnBlock| block.gate_up.n_bytes() + block.down.n_bytes();
        match self {
            Self::Dense(block) => of(block),
            Self::Experts { router, experts } => {
                router.n_bytes() + experts.iter().map(of).sum::<usize>()
            }
        }
    }

    /// Every matrix.
    pub(crate) fn linears_mut(&mut self) -> Vec<&mut Linear> {
        let (router, blocks) = match self {
            Self::Dense(block) => (None, std::slice::from_mut(block)),
            Self::Experts { router, experts } => (Some(router), experts.as_mut_slice()),
        };
        let blocks = blocks.iter_mut().flat_map(|block| [&mut block.gate_up, &mut block.down]);
        router.into_iter().chain(blocks).collect()
    }

    /// Whether some of its weights are packed blocks.
    pub(crate) fn has_packed_blocks(&self) -> bool {
        let of =
            |block: &FfnBlock| block.gate_up.has_packed_blocks() || block.down.has_packed_blocks();
        match self {
            Self::Dense(block) => of(block),
            Self::Experts { router, experts } => {
                router.has_packed_blocks() || experts.iter().any(of)
            }
        }
    }

    /// The one block.
    ///
    /// # Panics
    /// When there are experts, whose training is not computed.
    pub(crate) fn dense(&self) -> &FfnBlock {
        match self {
            Self::Dense(block) => block,
            Self::Experts { .. } => panic!("experts have no backward pass"),
        }
    }

    /// As [`FeedForward::dense`].
    pub(crate) fn dense_mut(&mut self) -> &mut FfnBlock {
        match self {
            Self::Dense(block) => block,
            Self::Experts { .. } => panic!("experts are not packed from parameters"),
        }
    }
}

/// Working memory of routed experts. `A` stands for the number type of the inputs of products.
#[derive(Debug)]
pub(crate) struct ExpertWorkspace {
    /// f32 `[tokens, n_experts]`.
    router_logits: Tensor,
    /// The same, where they were computed on a GPU: experts are chosen beside it.
    host_logits: PinnedNumbers,
    routes: Routes,
    /// A `[rows of an expert, hidden]`.
    input: Tensor,
    /// f32 `[rows of an expert, hidden]`.
    output: Tensor,
}

impl ExpertWorkspace {
    /// `None` for a model without experts.
    pub(crate) fn new(
        device: &Device,
        config: &ModelConfig,
        dtype: DType,
        max_rows: usize,
    ) -> Option<Self> {
        let n_experts = config.experts?.n_experts;
        let zeroed = |dtype, width| Tensor::zeroed_on(device, dtype, max_rows, width);
        Some(Self {
            router_logits: zeroed(DType::F32, n_experts),
            host_logits: PinnedNumbers::default(),
            routes: Routes::with_capacity(n_experts, max_rows),
            input: zeroed(dtype, config.hidden_dim),
            output: zeroed(DType::F32, config.hidden_dim),
        })
    }

    pub(crate) fn bytes_for(config: &ModelConfig, dtype: DType, max_rows: usize) -> usize {
        let Some(experts) = config.experts else { return 0 };
        max_rows * (experts.n_experts * 4 + config.hidden_dim * (dtype.bytes() + 4))
            + Routes::bytes_for(experts.n_experts, max_rows)
    }

    pub(crate) fn n_bytes(&self) -> usize {
        let Self { router_logits, host_logits, routes, input, output } = self;
        let tensors = [router_logits, input, output];
        tensors.map(Tensor::n_bytes).into_iter().sum::<usize>()
            + host_logits.n_bytes()
            + routes.n_bytes()
    }
}

/// `residual += ffn(ffn_normed)` of the layer whose activations are in `slot`, with the changes of adapters to a dense
/// block. Experts are added in the order of their indices.
pub(crate) fn run(
    device: &Device,
    ffn: &FeedForward,
    (adapted, layer_idx): (&[AdaptedRows<'_>], usize),
    slot: usize,
    workspace: &mut Workspace,
) {
    let w = workspace;
    let LayerActivations { ffn_normed, gate_up, activated, .. } = &mut w.layers[slot];
    let mut run = BlockRun {
        device,
        gate_up,
        activated: activated.as_mut().or(w.activated.as_mut()).expect("its own or one for all"),
        adapted: (adapted, layer_idx),
        low_rank: &mut w.low_rank,
        operands: &mut w.operands,
    };
    match ffn {
        FeedForward::Dense(block) => {
            run.block(block, ffn_normed, &mut w.residual, Write::Accumulate)
        }
        FeedForward::Experts { router, experts } => {
            let e = w.experts.as_mut().expect("a workspace for a model with experts");
            let n_active = w.n_active_experts;
            e.router_logits.set_rows(ffn_normed.n_rows());
            let logits = e.router_logits.view_mut();
            let scratch = &mut *run.operands;
            router.forward(device, ffn_normed.view(), logits, Write::Overwrite, scratch);
            e.routes.set(e.router_logits.read_f32(&mut e.host_logits), n_active);
            for (expert_idx, block) in experts.iter().enumerate() {
                let route = e.routes.expert(expert_idx);
                if route.rows.is_empty() {
                    continue;
                }
                e.input.set_rows(route.rows.len());
                e.output.set_rows(route.rows.len());
                ops::gather_rows(device, ffn_normed.view(), &route.rows, e.input.view_mut());
                run.block(block, &e.input, &mut e.output, Write::Overwrite);
                ops::add_weighted_rows(device, e.output.view(), route, w.residual.view_mut());
            }
        }
    }
}

/// What a block writes between its two products.
struct BlockRun<'a> {
    device: &'a Device,
    gate_up: &'a mut Tensor,
    activated: &'a mut Tensor,
    /// Adapters and the layer, for a dense block; none changes an expert.
    adapted: (&'a [AdaptedRows<'a>], usize),
    low_rank: &'a mut Option<LowRankScratch>,
    operands: &'a mut OperandScratch,
}

impl BlockRun<'_> {
    fn block(&mut self, block: &FfnBlock, x: &Tensor, out: &mut Tensor, write: Write) {
        let (device, gate_up) = (self.device, &mut *self.gate_up);
        for tensor in [&mut *gate_up, self.activated] {
            tensor.set_rows(x.n_rows());
        }
        let (operands, write_product) = (&mut *self.operands, Write::Overwrite);
        block.gate_up.forward(device, x.view(), gate_up.view_mut(), write_product, operands);
        let (adapted, layer_idx) = self.adapted;
        let changes = (adapted, layer_idx, AdaptedProduct::GateUp);
        let scratch = (&mut *self.low_rank, &mut *self.operands);
        adapted::add(device, changes, x, gate_up, scratch);
        ops::swiglu(device, gate_up.view(), self.activated.view_mut());
        block.down.forward(device, self.activated.view(), out.view_mut(), write, self.operands);
        let changes = (adapted, layer_idx, AdaptedProduct::Down);
        let scratch = (&mut *self.low_rank, &mut *self.operands);
        adapted::add(device, changes, self.activated, out, scratch);
    }
}
