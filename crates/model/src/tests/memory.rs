//! Plans of memory against what is taken.

use super::*;

/// Dimensions that are not whole panels, one block for all tokens and routed experts, a head of its own and a tied one, a window.
fn shapes() -> [ModelConfig; 2] {
    let dense = config(|c| {
        (c.vocab_size, c.hidden_dim, c.ffn_dim) = (100, 48, 112);
        c.sliding_windows = vec![Some(40), None];
    });
    let experts = config(|c| {
        (c.vocab_size, c.hidden_dim, c.ffn_dim, c.head_dim) = (70, 32, 18, 10);
        c.experts = Some(Experts { n_experts: 5, n_active: 2 });
        c.tied_embeddings = false;
    });
    [dense, experts]
}

#[test]
fn planned_bytes_are_those_taken() {
    let device = fastest(1);
    for config in shapes() {
        for dtype in [DType::F32, DType::Bf16] {
            for passes in [Passes::Forward, Passes::ForwardAndBackward] {
                let shown = format!("{dtype:?} {passes:?} {:?}", config.experts);
                let decoder = Decoder::zeroed(&device, &config, dtype, passes);
                let planned = Decoder::bytes_for(&config, dtype, passes);
                assert_eq!(decoder.n_bytes(), planned, "decoder {shown}");
                // Fewer rows than a chunk of logits, and more.
                for max_rows in [1, 33, 700] {
                    let workspace = Workspace::new(&device, &config, dtype, max_rows, passes);
                    let planned = Workspace::bytes_for(&config, dtype, max_rows, passes);
                    assert_eq!(workspace.n_bytes(), planned, "{max_rows} rows, {shown}");
                }
            }
            for max_rows in [1, 33, 700] {
                let workspace = GradientWorkspace::new(&device, &config, dtype, max_rows);
                let planned = GradientWorkspace::bytes_for(&config, dtype, max_rows);
                assert_eq!(workspace.n_bytes(), planned, "gradients of {max_rows} rows, {dtype:?}");
                let n_blocks = KvBlocks::blocks_for(&config, 10 * max_rows, max_rows);
                let blocks = KvBlocks::new(&device, &config, dtype, CacheKind::Operands, n_blocks);
                let planned = KvBlocks::bytes_for(
                    &config,
                    dtype,
                    CacheKind::Operands,
                    10 * max_rows,
                    max_rows,
                );
                assert_eq!(blocks.n_bytes(), planned, "blocks of {max_rows} rows, {dtype:?}");
            }
        }
    }
}

#[test]
fn a_pass_takes_no_more_than_was_planned() {
    let config = config(|_| {});
    let device = fastest(1);
    let (dtype, n) = (DType::Bf16, 64);
    let decoder = decoder(&device, &parameters(&config, 40), dtype);
    let mut workspace = Workspace::new(&device, &config, dtype, n, Passes::Forward);
    let token_ids = random_ids(41, n, config.vocab_size);
    let _ = decoder.logits(&device, &token_ids, &[0, 20, 40, 64], &mut workspace);
    assert_eq!(workspace.n_bytes(), Workspace::bytes_for(&config, dtype, n, Passes::Forward));
}

#[test]
fn a_step_reads_all_weights_but_an_embedding_that_is_no_head() {
    let device = fastest(1);
    let [tied, untied] = [true, false].map(|tied_embeddings| {
        let config = config(|c| c.tied_embeddings = tied_embeddings);
        decoder(&device, &parameters(&config, 1), DType::F32)
    });
    assert_eq!(tied.n_bytes_of_step(), tied.n_bytes());
    assert_eq!(untied.n_bytes_of_step(), tied.n_bytes());
    assert!(untied.n_bytes() > tied.n_bytes());
}
