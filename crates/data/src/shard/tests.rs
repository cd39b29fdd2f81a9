use std::fs;

use super::*;
use proptest::prelude::*;
use testkit::damage::damaged;
use testkit::test_dir::TestDir;

fn write(dir: &Path, documents: &[Vec<u32>], vocab_size: usize) -> Manifest {
    let mut writer = ShardWriter::create(dir, "digest", vocab_size).unwrap();
    for document in documents {
        writer.add(document).unwrap();
    }
    writer.finish(vec!["bundled".to_owned()]).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn a_shard_is_read_back_as_written(
        documents in prop::collection::vec(prop::collection::vec(0u32..70_000, 0..50), 0..20),
        is_small: bool,
    ) {
        let scratch = TestDir::new("shard-round-trip");
        let dir = scratch.path().join("train-00000");
        let vocab_size = if is_small { 300 } else { 70_000 };
        let documents: Vec<Vec<u32>> = documents
            .into_iter()
            .map(|document| document.into_iter().map(|id| id % vocab_size as u32).collect())
            .collect();
        let manifest = write(&dir, &documents, vocab_size);
        let shard = Shard::open(&dir).unwrap();
        prop_assert_eq!(&shard.manifest, &manifest);
        prop_assert_eq!(manifest.dtype, if is_small { TokenDtype::U16 } else { TokenDtype::U32 });
        prop_assert_eq!(shard.documents.n_documents(), documents.len());
        for (document_idx, document) in documents.iter().enumerate() {
            prop_assert_eq!(&shard.documents.document(document_idx), document);
        }
        let n_bytes = fs::metadata(dir.join(TOKENS_FILE)).unwrap().len();
        prop_assert_eq!(n_bytes, manifest.n_tokens * manifest.dtype.n_bytes());
    }
}

#[test]
fn an_unfinished_or_refused_shard_leaves_nothing() {
    let scratch = TestDir::new("shard-unfinished");
    let dir = scratch.path().join("train");
    let mut writer = ShardWriter::create(&dir, "digest", 100).unwrap();
    writer.add(&[1, 2, 3]).unwrap();
    let error = writer.add(&[5, 100]).unwrap_err().to_string();
    assert_eq!(error, "token id 100 of document 1 is outside the vocabulary of 100");
    drop(writer);
    assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 0);
    write(&dir, &[vec![1]], 100);
    assert!(ShardWriter::create(&dir, "digest", 100).is_err(), "nothing is overwritten");
    assert!(ShardWriter::create(&scratch.path().join("none/train"), "digest", 100).is_err());
    assert!(ShardWriter::create(&scratch.path().join("other"), "digest", 0).is_err());
}

/// Opens a shard after `change` was made to one of its files; tests run side by side, so each has its folder.
fn open_changed(test: &str, name: &str, change: impl FnOnce(&mut Vec<u8>)) -> String {
    let scratch = TestDir::new(test);
    let dir = scratch.path().join("train");
    write(&dir, &[vec![1, 2, 3], vec![], vec![4, 5]], 100);
    let path = dir.join(name);
    let mut bytes = fs::read(&path).unwrap();
    change(&mut bytes);
    fs::write(&path, &bytes).unwrap();
    Shard::open(&dir).unwrap_err().to_string()
}

#[test]
fn damaged_files_are_named() {
    for name in [TOKENS_FILE, OFFSETS_FILE] {
        let error = open_changed("damaged", name, |bytes| bytes.clear());
        assert!(error.contains(name) && error.contains("size in bytes is 0"), "{error}");
        let error = open_changed("damaged", name, |bytes| bytes[0] ^= 1);
        assert!(error.contains(name) && error.contains("sha256"), "{error}");
    }
    let error = open_changed("damaged", MANIFEST_FILE, |bytes| bytes.truncate(20));
    assert!(error.contains(MANIFEST_FILE), "{error}");
    let scratch = TestDir::new("shard-missing");
    let error = Shard::open(&scratch.path().join("none")).unwrap_err().to_string();
    assert!(error.contains("none"), "{error}");
}

fn with_manifest(change: impl FnOnce(&mut serde_json::Value)) -> String {
    open_changed("lying", MANIFEST_FILE, |bytes| {
        let mut value = serde_json::from_slice(bytes).unwrap();
        change(&mut value);
        *bytes = value.to_string().into_bytes();
    })
}

#[test]
fn lying_manifests_are_refused_before_anything_is_allocated() {
    let lies = [
        ("n_tokens", serde_json::json!(1u64 << 39), "last offset is 5"),
        ("n_tokens", serde_json::json!(u64::MAX), "n_tokens"),
        ("n_documents", serde_json::json!(u64::MAX), "n_documents"),
        ("n_documents", serde_json::json!(2), "size in bytes"),
        ("format_version", serde_json::json!(2), "format_version"),
        ("vocab_size", serde_json::json!(3), "largest token id is 5, expected below 3"),
        ("vocab_size", serde_json::json!(0), "vocab_size"),
        ("vocab_size", serde_json::json!(u64::MAX), "vocab_size"),
        ("dtype", serde_json::json!("u32"), "dtype"),
        ("dtype", serde_json::json!("f32"), "manifest"),
        ("tokens_sha256", serde_json::json!(""), "sha256"),
        ("unknown", serde_json::json!(1), "unknown"),
    ];
    for (field, value, expected) in lies {
        let error = with_manifest(|manifest| manifest[field] = value);
        assert!(error.contains(expected), "{field}: {error}");
    }
}

#[test]
fn offsets_that_go_backwards_are_refused_even_with_the_right_sum() {
    for (offsets, expected) in [
        ([0u64, 4, 3, 5], "at least 4"),
        ([1, 3, 3, 5], "first offset is 1"),
        ([0, 3, 3, 4], "last offset is 4"),
        ([0, u64::MAX, 3, 5], "at least"),
    ] {
        let bytes: Vec<u8> = offsets.iter().flat_map(|offset| offset.to_le_bytes()).collect();
        let scratch = TestDir::new("shard-offsets");
        let dir = scratch.path().join("train");
        let mut manifest = write(&dir, &[vec![1, 2, 3], vec![], vec![4, 5]], 100);
        manifest.offsets_sha256 = hex(Sha256::new_with_prefix(&bytes));
        fs::write(dir.join(OFFSETS_FILE), &bytes).unwrap();
        fs::write(dir.join(MANIFEST_FILE), serde_json::to_vec(&manifest).unwrap()).unwrap();
        let error = Shard::open(&dir).unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains(OFFSETS_FILE), "{error}");
    }
}

#[test]
fn documents_in_memory_use_16_bits_when_ids_fit() {
    let small = TokenDocuments::collect([vec![1, 65_535], vec![], vec![7]]);
    let large = TokenDocuments::collect([vec![1, 65_536], vec![], vec![7]]);
    assert_eq!((small.document(0), large.document(0)), (vec![1, 65_535], vec![1, 65_536]));
    assert_eq!((small.n_tokens(), small.n_documents(), small.document_len(1)), (3, 3, 0));
    assert_eq!(large.largest_id(), Some(65_536));
    assert_eq!(TokenDocuments::collect(Vec::<Vec<u32>>::new()).n_documents(), 0);
}

#[test]
fn damaged_manifests_never_panic() {
    let scratch = TestDir::new("shard-damaged");
    let dir = scratch.path().join("train");
    write(&dir, &[vec![1, 2, 3], vec![4]], 100);
    let path = dir.join(MANIFEST_FILE);
    let valid = fs::read(&path).unwrap();
    let mut n_right = 0;
    for bytes in damaged(&valid, 1, 1_000) {
        fs::write(&path, bytes).unwrap();
        n_right += usize::from(Shard::open(&dir).is_ok());
    }
    assert!((1..700).contains(&n_right), "{n_right} of 1000 are still right");
}
