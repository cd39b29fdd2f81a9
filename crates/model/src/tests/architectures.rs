//! Every architecture of the family against transformers: in one pass and through a cache, from every layout.

use std::path::PathBuf;

use super::*;

struct Golden {
    name: String,
    token_ids: Vec<u32>,
    logits: Vec<f32>,
    logits_bf16: Vec<f32>,
    dirs: Vec<PathBuf>,
}

impl Golden {
    fn all() -> Vec<Self> {
        let root = golden::workspace_root().join("golden/architectures");
        let mut names: Vec<String> = std::fs::read_dir(&root)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names.len(), 9 + 2, "{names:?}");
        names.into_iter().map(|name| Self::open(&root.join(&name), name)).collect()
    }

    fn open(dir: &std::path::Path, name: String) -> Self {
        let expected = golden::load(dir.join("expected.safetensors"));
        let dirs = ["hf", "native", "gguf"].map(|layout| dir.join(layout));
        Self {
            name,
            token_ids: expected.i64("token_ids").iter().map(|&id| id as u32).collect(),
            logits: expected.f32("logits").to_vec(),
            logits_bf16: expected.f32("logits_bf16").to_vec(),
            dirs: dirs.into_iter().filter(|dir| dir.is_dir()).collect(),
        }
    }
}

/// Largest difference of a row, over all rows, ascending.
fn row_differences(a: &[f32], b: &[f32], vocab_size: usize) -> Vec<f32> {
    let rows = a.chunks(vocab_size).zip(b.chunks(vocab_size));
    let largest =
        |(a, b): (&[f32], &[f32])| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    let mut differences: Vec<f32> = rows.map(largest).collect();
    differences.sort_by(f32::total_cmp);
    differences
}

#[test]
fn every_architecture_gives_the_logits_of_transformers() {
    let all = Golden::all();
    assert_eq!(all.iter().map(|golden| golden.dirs.len()).sum::<usize>(), 9 + 5 + 9 + 2);
    for golden in all {
        let dirs: Vec<ModelDir> =
            golden.dirs.iter().map(|dir| ModelDir::open(dir).unwrap()).collect();
        for device in devices(2) {
            let logits = check_f32(&golden, &device, &dirs);
            check_bf16(&golden, &device, &dirs[0]);
            check_cached(&golden, &device, &load(&device, &dirs[0], DType::F32), &logits);
        }
    }
}

#[test]
fn every_architecture_on_a_gpu_gives_the_logits_of_transformers() {
    let Some(device) = gpu::gpu() else { return };
    for golden in Golden::all() {
        let dirs: Vec<ModelDir> =
            golden.dirs.iter().map(|dir| ModelDir::open(dir).unwrap()).collect();
        check_f32(&golden, &device, &dirs);
        check_bf16(&golden, &device, &dirs[0]);
    }
}

fn one_pass(golden: &Golden, device: &Device, decoder: &Decoder) -> Vec<f32> {
    let n = golden.token_ids.len();
    let mut workspace = Workspace::for_decoder(decoder, n);
    decoder.logits(device, &golden.token_ids, &[0, n as u32], &mut workspace)
}

/// In f32 the sums differ in their order only: values of about 1, products of a few dozen terms, up to four layers.
fn check_f32(golden: &Golden, device: &Device, dirs: &[ModelDir]) -> Vec<f32> {
    let of_layout = |dir| one_pass(golden, device, &load(device, dir, DType::F32));
    let logits = of_layout(&dirs[0]);
    let vocab_size = dirs[0].config().vocab_size;
    let differences = row_differences(&logits, &golden.logits, vocab_size);
    let (name, family) = (&golden.name, device.family_name());
    assert!(differences.last().unwrap() < &2e-5, "{name} {family}: {differences:?}");
    for dir in &dirs[1..] {
        assert_eq!(of_layout(dir), logits, "{name} {family} from {}", dir.dir().display());
    }
    logits
}

/// In bf16 implementations differ by what they round. Ours, whose residual stream is f32, is nearer to the exact logits
/// than transformers is. (Where a router's choice is close, one token may take another expert: the largest
/// difference is as large as an expert's output, in both.) Blocks are multiplied with rows of 8 bits (on AMX of bf16), whose steps, 1/127 of the
/// largest of 32 numbers, are about twice those of bf16.
fn check_bf16(golden: &Golden, device: &Device, dir: &ModelDir) {
    let logits = one_pass(golden, device, &load(device, dir, DType::Bf16));
    let n = golden.token_ids.len();
    let ours = row_differences(&logits, &golden.logits, dir.config().vocab_size);
    let theirs = row_differences(&golden.logits_bf16, &golden.logits, dir.config().vocab_size);
    let (name, family) = (&golden.name, device.family_name());
    let factor = if name.starts_with("quantised") { 1.5 } else { 1.0 };
    for i in [n / 2, n - 1] {
        assert!(
            ours[i] <= factor * theirs[i],
            "{name} {family}: {} against {}",
            ours[i],
            theirs[i]
        );
    }
}

/// One by one, in chunks that are no multiple of anything, and all at once: the bits of one pass.
fn check_cached(golden: &Golden, device: &Device, decoder: &Decoder, logits: &[f32]) {
    let vocab_size = decoder.config().vocab_size;
    let n = golden.token_ids.len();
    for chunk_len in [1, 7, 33, n] {
        let cached = cached_logits(decoder, device, &golden.token_ids, chunk_len);
        for (i, chunk) in cached.chunks(vocab_size).enumerate() {
            let last = n.min((i + 1) * chunk_len) - 1;
            let row = &logits[last * vocab_size..][..vocab_size];
            assert_eq!(chunk, row, "{} {}", golden.name, device.compute().family());
        }
    }
}

#[test]
fn a_cache_of_windows_holds_no_more_than_they_reach() {
    let config = config(|c| {
        c.context_len = 4096;
        c.sliding_windows = vec![Some(40), None];
    });
    let bytes =
        |n_tokens| KvBlocks::bytes_for(&config, DType::F32, CacheKind::Operands, n_tokens, 16);
    let block = KvBlocks::block_bytes(&config, DType::F32, CacheKind::Operands);
    // Two blocks for 39 + 16 positions, and one because they may begin within a block.
    assert_eq!(bytes(4096), (3 + 128) * block);
    assert_eq!(bytes(32), 2 * block);
    let device = fastest(1);
    let decoder = decoder(&device, &parameters(&config, 30), DType::F32);
    let token_ids = random_ids(31, 300, config.vocab_size);
    let mut workspace = Workspace::new(&device, &config, DType::F32, 300, Passes::Forward);
    let expected = decoder.logits(&device, &token_ids, &[0, 300], &mut workspace);
    let mut cache = KvCache::new(&decoder, CacheKind::Operands, 1, 4096, 16);
    let mut logits = Vec::new();
    let mut end = 0;
    // 57 tokens, five times: well past the window of 40 twice.
    for len in [16, 16, 1, 5, 16, 3].repeat(5) {
        let rows = [(0, &token_ids[end..end + len])];
        cache.append(&decoder, &device, &rows, &mut workspace, &mut logits);
        end += len;
        assert_eq!(logits, expected[(end - 1) * 32..end * 32], "after {end} tokens");
    }
}

/// What is said after tokens were forgotten is what is said without them, also where windows see again what they had passed.
#[test]
fn forgotten_tokens_leave_no_trace() {
    let device = Device::Cpu(Compute::forced(Family::Reference, 1).unwrap());
    let mut config = ModelConfig::example();
    (config.context_len, config.sliding_windows) = (400, vec![Some(40), None]);
    let config = ModelConfig::new(config).unwrap();
    let mut decoder = Decoder::zeroed(&device, &config, DType::F32, Passes::Forward);
    decoder.pack(&device, &Parameters::random(&config, 5));
    let ids = random_ids(6, 300, config.vocab_size);
    let others = random_ids(7, 16, config.vocab_size);
    let mut workspace = Workspace::for_decoder(&decoder, 16);
    let mut said = |forgotten: bool| {
        let mut cache = KvCache::new(&decoder, CacheKind::Operands, 1, 400, 16);
        let (mut logits, mut all) = (Vec::new(), Vec::new());
        for chunk in ids.chunks(5) {
            cache.append(&decoder, &device, &[(0, chunk)], &mut workspace, &mut logits);
            all.extend_from_slice(&logits);
            if forgotten {
                let len = cache.len(0);
                cache.append(&decoder, &device, &[(0, &others)], &mut workspace, &mut logits);
                assert_eq!(cache.truncate(0, len), len);
            }
        }
        (all, cache.truncate(0, 290), cache.truncate(0, 283))
    };
    let (plain, kept, begun_again) = said(false);
    assert_eq!((kept, begun_again), (290, 0), "17 are more than come at a time");
    assert_eq!(said(true).0, plain);
}
