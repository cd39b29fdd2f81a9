//! Memory in the emulator.

use cuda::{DeviceMatrix, Gpu, LibraryPath, NumberType, PinnedNumbers};

#[test]
fn pinned_numbers_are_those_of_the_matrix_that_was_read_last() {
    let Some(directory) = testkit::cuda_emulator::directory() else { return };
    let gpu = Gpu::open(&LibraryPath::new(Some(directory))).unwrap();
    let values: Vec<f32> = (0..60).map(|i| i as f32).collect();
    let matrix = DeviceMatrix::of_f32(&gpu, NumberType::F32, &values, 6);
    let mut pinned = PinnedNumbers::default();
    assert!(pinned.read(matrix.rows(0..0, 6)).is_empty());
    assert_eq!(pinned.n_bytes(), 0);
    assert_eq!(pinned.read(matrix.rows(2..4, 6)), &values[12..24]);
    assert_eq!(pinned.n_bytes(), 64);
    assert_eq!(pinned.read(matrix.view()), &values[..]);
    // It keeps the room for the most that was read, and moves between threads.
    let reader = std::thread::Builder::new().name("reader".to_owned());
    let rows = reader.spawn(move || {
        let rows = matrix.rows(9..10, 6);
        (pinned.read(rows).to_vec(), pinned.n_bytes())
    });
    assert_eq!(rows.unwrap().join().unwrap(), (values[54..].to_vec(), 256));
}
