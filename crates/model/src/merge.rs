//! Low-rank changes put into the matrices of a model.

use formats::adapter::LowRankPair;

/// Adds the rows of a low-rank change to rows of its matrix:
/// `rows[i, j] += scaling * sum_r b[first_row + i, r] * a[r, j]`.
///
/// Shapes: rows `[n, n_in]`, a `[rank, n_in]`, b `[n_out, rank]`. Sums in f32, ascending in r, before the change is added. Source:
/// arXiv 2106.09685, eq. 3.
///
/// # Panics
/// When the rows are no whole rows of the matrix.
pub fn add_low_rank(pair: &LowRankPair, first_row: usize, rows: &mut [f32]) {
    let n_in = pair.a.len() / pair.rank;
    assert_eq!(rows.len() % n_in, 0, "whole rows of {n_in} numbers");
    let scaling = pair.scaling as f32;
    let mut change = vec![0.0; n_in];
    for (row, b) in
        rows.chunks_exact_mut(n_in).zip(pair.b[first_row * pair.rank..].chunks_exact(pair.rank))
    {
        change.fill(0.0);
        for (factor, a) in b.iter().zip(pair.a.chunks_exact(n_in)) {
            for (sum, a) in change.iter_mut().zip(a) {
                *sum += factor * a;
            }
        }
        for (number, change) in row.iter_mut().zip(&change) {
            *number += scaling * change;
        }
    }
}

#[cfg(test)]
mod tests {
    use formats::WeightFiles;
    use formats::adapter::Adapter;
    use formats::model_dir::ModelDir;
    use testkit::golden::workspace_root;

    use super::*;

    #[test]
    fn rows_get_their_part_of_the_product() {
        let pair = LowRankPair {
            a: vec![1.0, 2.0, 3.0, -1.0, 0.0, 1.0],
            b: vec![1.0, 0.0, 2.0, 1.0, 0.0, -1.0],
            rank: 2,
            scaling: 0.5,
        };
        let mut whole = [10.0; 9];
        add_low_rank(&pair, 0, &mut whole);
        assert_eq!(whole, [10.5, 11.0, 11.5, 10.5, 12.0, 13.5, 10.5, 10.0, 9.5]);
        let mut last = [10.0; 3];
        add_low_rank(&pair, 2, &mut last);
        assert_eq!(last, whole[6..]);
    }

    /// `golden/make_adapters.py` wrote what `peft` makes of the model.
    #[test]
    fn merged_matrices_are_those_of_peft_in_every_layout() {
        let golden = workspace_root().join("golden");
        let expected = WeightFiles::open_file(&golden.join("adapters/expected.safetensors"));
        let expected = expected.unwrap();
        for (layout, adapter) in [("hf", "peft"), ("native", "native"), ("gguf", "peft")] {
            let model = ModelDir::open(&golden.join("architectures/mistral").join(layout)).unwrap();
            let config = model.config();
            let adapter = Adapter::open(&golden.join("adapters").join(adapter), config, None);
            let adapter = adapter.unwrap();
            for name in adapter.names() {
                let weight = model.weights().weight(name, config).unwrap();
                let mut rows = vec![0.0; name.shape(config).iter().product()];
                weight.read_f32(&mut rows);
                add_low_rank(&adapter.pair(name, config).unwrap().unwrap(), 0, &mut rows);
                let hf_name = name.hf_name();
                let wanted = expected.get(&hf_name).unwrap().to_f32();
                for (got, wanted) in rows.iter().zip(wanted) {
                    // Sums of three products of numbers around one, in another order.
                    assert!((got - wanted).abs() < 2e-6, "{layout} {hf_name}: {got} {wanted}");
                }
            }
        }
    }
}
