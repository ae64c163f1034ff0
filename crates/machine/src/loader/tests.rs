//! Kernel images, whole and damaged. Real ones are looked for in the directory `STRATA_TEST_ASSETS` names.

use std::path::PathBuf;

use super::*;
use crate::testing::tiny_kernel;

/// A bzImage around `payload`.
fn bzimage(payload: &[u8]) -> Vec<u8> {
    let mut image = vec![0; 1024];
    image[0x1f1] = 1;
    image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x20fu16.to_le_bytes());
    image[0x20e..0x210].copy_from_slice(&0x100u16.to_le_bytes());
    image[0x211] = 1;
    image[0x236] = 1;
    image[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    image[0x300..0x30b].copy_from_slice(b"6.1.0-1 (x)");
    image.extend_from_slice(payload);
    image
}

fn compressors() -> Vec<(Compression, Vec<u8>)> {
    use std::io::Write;
    let kernel = tiny_kernel();
    let size = (kernel.len() as u32).to_le_bytes();
    let mut all = Vec::new();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&kernel).unwrap();
    all.push((Compression::Gzip, gzip.finish().unwrap()));
    let mut bzip2 = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
    bzip2.write_all(&kernel).unwrap();
    all.push((Compression::Bzip2, [bzip2.finish().unwrap(), size.to_vec()].concat()));
    let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 1);
    xz.write_all(&kernel).unwrap();
    all.push((Compression::Xz, [xz.finish().unwrap(), size.to_vec()].concat()));
    let options = liblzma::stream::LzmaOptions::new_preset(1).unwrap();
    let stream = liblzma::stream::Stream::new_lzma_encoder(&options).unwrap();
    let mut lzma = liblzma::write::XzEncoder::new_stream(Vec::new(), stream);
    lzma.write_all(&kernel).unwrap();
    all.push((Compression::Lzma, [lzma.finish().unwrap(), size.to_vec()].concat()));
    let zstd = zstd::stream::encode_all(&kernel[..], 1).unwrap();
    all.push((Compression::Zstd, [zstd, size.to_vec()].concat()));
    let block = lz4_flex::block::compress(&kernel);
    let parts = [&[2, 0x21, 0x4c, 0x18][..], &(block.len() as u32).to_le_bytes(), &block, &size];
    all.push((Compression::Lz4, parts.concat()));
    all.push((Compression::Lzo, lzop(&kernel, &kernel)));
    all.push((Compression::Lzo, lzop(&kernel, &lzokay::compress::compress(&kernel).unwrap())));
    all
}

/// An lzop file of one block that is stored as `packed`.
fn lzop(data: &[u8], packed: &[u8]) -> Vec<u8> {
    let mut file = b"\x89LZO\0\r\n\x1a\n".to_vec();
    file.extend([0x10, 0x30, 0x20, 0xa0, 0x09, 0x40, 3, 9]); // versions, method, level
    file.extend([0; 4 + 4 + 4 + 4 + 1 + 4]); // flags, mode, mtime low and high, no name, checksum
    let sizes = [data, packed].map(|bytes| (bytes.len() as u32).to_be_bytes());
    file.extend([sizes[0], sizes[1], [0; 4]].concat());
    file.extend(packed);
    file.extend([0; 4]);
    file
}

#[test]
fn every_compression_the_kernel_build_offers_is_undone() {
    for (compression, payload) in compressors() {
        let image = bzimage(&payload);
        let info = inspect(&image).unwrap();
        assert_eq!((info.kind, info.compression, info.isa), (KernelKind::BzImage, compression, "x86-64"));
        assert_eq!(info.release(), Some("6.1.0-1"));
        let vmlinux = extract_vmlinux(&image).unwrap_or_else(|e| panic!("{compression:?}: {e:?}"));
        assert!(*vmlinux == tiny_kernel(), "{compression:?}");
    }
}

#[test]
fn every_truncation_of_a_bzimage_is_an_error_and_never_a_panic() {
    for (compression, payload) in compressors() {
        let image = bzimage(&payload);
        // The last bytes are sizes and terminators that no decompressor needs.
        for len in (0..image.len() - 16).step_by(61) {
            let _ = inspect(&image[..len]);
            assert!(extract_vmlinux(&image[..len]).is_err(), "{compression:?} cut at {len}");
        }
    }
}

#[test]
fn damaged_files_are_errors_or_kernels_but_never_panics() {
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed as usize
    };
    let images: Vec<_> =
        compressors().iter().map(|(_, payload)| bzimage(payload)).chain([tiny_kernel()]).collect();
    for image in &images {
        for _ in 0..300 {
            let mut damaged = image.clone();
            for _ in 0..=random() % 8 {
                // Most damage goes where the headers are.
                let at = if random() % 4 == 0 { random() } else { random() % 1200 } % damaged.len();
                damaged[at] = random() as u8;
            }
            let _ = inspect(&damaged);
            if let Ok(vmlinux) = extract_vmlinux(&damaged) {
                let elf = elf::Elf::parse(&vmlinux).unwrap();
                let _ = (elf.pvh_entry(), elf.entry(), elf.extent());
                let ram = memory::GuestRam::new(&[(0, 4 << 20)]).unwrap();
                let _ = elf.load(&ram, elf::ZeroFill::Fresh);
            }
        }
    }
}

#[test]
fn a_decompression_bomb_is_stopped_at_the_limit() {
    let bomb = zstd::stream::encode_all(&vec![0u8; 8 << 20][..], 1).unwrap();
    let result = decompress::decompress(&bomb, Compression::Zstd, 1 << 20);
    assert!(matches!(result, Err(Error::TooLarge { limit: 0x10_0000 })));
    let block = lz4_flex::block::compress(&vec![0u8; 8 << 20]);
    let parts = [&[2, 0x21, 0x4c, 0x18][..], &(block.len() as u32).to_le_bytes(), &block].concat();
    assert!(matches!(decompress::decompress(&parts, Compression::Lz4, 1 << 20), Err(Error::TooLarge { .. })));
}

#[test]
fn what_is_no_kernel_is_told_by_name() {
    let text = |image: &[u8]| inspect(image).unwrap_err().to_string();
    assert_eq!(text(b""), "not a kernel but an empty file");
    assert_eq!(text(&[0x1f, 0x8b, 8]), "not a kernel but a gzip file");
    let mut arm64 = vec![0; 64];
    arm64[0x38..0x3c].copy_from_slice(b"ARMd");
    assert_eq!(text(&arm64), "kernel is for arm64, this machine is x86-64");
    let mut elf = tiny_kernel();
    elf[0x12] = 183;
    assert_eq!(text(&elf), "kernel is for arm64, this machine is x86-64");
    elf[0x12] = 62;
    elf[0x10] = 3;
    assert_eq!(text(&elf), "not a kernel but a shared library or position-independent program");
}

#[test]
fn elf_headers_that_lie_are_refused() {
    let refused = |at: usize, bytes: &[u8]| {
        let mut elf = tiny_kernel();
        elf[at..at + bytes.len()].copy_from_slice(bytes);
        extract_vmlinux(&elf).unwrap_err().to_string()
    };
    let far = u64::MAX.to_le_bytes();
    assert!(refused(64 + 8, &far).contains("truncated"), "segment offset");
    assert!(refused(64 + 24, &far).contains("wraps"), "segment address");
    assert!(refused(64 + 40, &1u64.to_le_bytes()).contains("p_filesz"), "memory smaller than file");
    assert!(refused(0x18, &8u64.to_le_bytes()).contains("in no segment"), "entry");
    assert!(refused(0x20, &far).contains("truncated"), "program headers");
    assert!(refused(0x38, &[0xff, 0xff]).contains("more program headers"), "count");
}

#[test]
fn a_kernel_beyond_the_end_of_memory_is_refused() {
    let kernel = tiny_kernel();
    let ram = memory::GuestRam::new(&[(0, 0x10_1000)]).unwrap();
    let error = elf::Elf::parse(&kernel).unwrap().load(&ram, elf::ZeroFill::Fresh).unwrap_err();
    assert!(error.to_string().contains("0x100000..0x102000"), "{error}");
}

#[test]
fn zeros_of_a_kernel_are_written_to_used_memory_only() {
    const START: u64 = 0x10_0000;
    let mut segment = vec![0; 0x5_0123];
    for at in [0, 0x1_ffff, 0x4_0000, 0x5_0122] {
        segment[at] = 7;
    }
    let mut kernel = tiny_kernel();
    kernel.truncate(0x1000);
    kernel.extend_from_slice(&segment);
    for size in [64 + 32, 64 + 40] {
        kernel[size..size + 8].copy_from_slice(&(segment.len() as u64).to_le_bytes());
    }
    let ram = memory::GuestRam::new(&[(0, 0x20_0000)]).unwrap();
    let load = |zero| {
        elf::Elf::parse(&kernel).unwrap().load(&ram, zero).unwrap();
        let mut found = vec![0; segment.len()];
        ram.read(START, &mut found).unwrap();
        assert!(found == segment);
    };
    load(elf::ZeroFill::Fresh);
    let dirty = |gpa: u64| ram.page(gpa >> 12).unwrap().info.flags().contains(memory::PageFlags::DIRTY);
    assert_eq!(
        [0, 0x1_0000, 0x2_0000, 0x3_f000, 0x5_0000].map(|at| dirty(START + at)),
        [true, true, false, false, true]
    );
    ram.write(START, &vec![9; segment.len()]).unwrap();
    load(elf::ZeroFill::Write);
}

#[test]
fn a_libkrunfw_bundle_becomes_an_elf_kernel() {
    let bytes = vec![0x90; 0x3000];
    let bundle = krunfw::Bundle { bytes: &bytes, load: 0x100_0000, entry: 0x100_0123 };
    let elf = bundle.to_elf();
    let file = elf::Elf::parse(&elf).unwrap();
    file.check_loadable().unwrap();
    assert_eq!((file.entry(), file.extent()), (0x100_0123, (0x100_0000, 0x100_3000)));
}

fn assets(names: &[&str]) -> Vec<(PathBuf, Vec<u8>)> {
    let Some(dir) = std::env::var_os("STRATA_TEST_ASSETS").map(PathBuf::from) else {
        println!("skipped: STRATA_TEST_ASSETS names no directory with real kernels");
        return Vec::new();
    };
    let entries = std::fs::read_dir(&dir).unwrap().filter_map(Result::ok).map(|entry| entry.path());
    let wanted = entries.filter(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        names.iter().any(|prefix| name.starts_with(prefix))
    });
    let found: Vec<_> = wanted.map(|path| (path.clone(), std::fs::read(path).unwrap())).collect();
    if found.is_empty() {
        println!("skipped: no {names:?} in {}", dir.display());
    }
    found
}

#[test]
fn real_kernels_are_understood() {
    for (path, image) in assets(&["vmlinuz", "bzImage", "libkrunfw", "vmlinux", "alpine"]) {
        let info = inspect(&image).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let vmlinux = extract_vmlinux(&image).unwrap_or_else(|e| panic!("{}: {e:?}", path.display()));
        let elf = elf::Elf::parse(&vmlinux).unwrap();
        println!("{}: {info:?}, acpi {:?}, pvh {:x?}", path.display(), elf.has_acpi(), elf.pvh_entry());
        assert!(info.version.is_some());
    }
}

#[test]
fn a_real_kernel_cut_anywhere_is_one_error() {
    if let Some((path, image)) = assets(&["vmlinuz"]).into_iter().next() {
        // Cut in the payload it is truncated by its own header; each cut costs no decompression.
        for len in (0..image.len()).step_by(4096) {
            if let Ok(whole) = extract_vmlinux(&image[..len]) {
                panic!("{} cut at {len:#x} still gives {} bytes", path.display(), whole.len());
            }
        }
    }
}
