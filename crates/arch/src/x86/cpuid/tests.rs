use super::*;

const CONTEXT: CpuidContext = CpuidContext { apic_id: 2, vcpu_count: 4, tsc_khz: 2_500_000, cr4: 0, xcr0: 1 };

fn model(name: &str) -> CpuModel {
    CpuModel::named(name).unwrap()
}

/// (leaf, subleaf, register, mask) of what no model may show: VMX, SMX, DTES64, MPX, HLE/RTM, AVX-512, PT, PKU, LA57,
/// CET, AMX, performance counters.
const HIDDEN: &[(u32, u32, CpuidRegister, u32)] = &[
    (1, 0, CpuidRegister::Ecx, 1 << 2 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 15 | 1 << 18),
    (7, 0, CpuidRegister::Ebx, 1 << 2 | 1 << 4 | 1 << 11 | 1 << 14 | 1 << 16 | 1 << 17 | 1 << 21 | 1 << 25),
    (7, 0, CpuidRegister::Ebx, 1 << 26 | 1 << 27 | 1 << 28 | 1 << 30 | 1 << 31),
    (7, 0, CpuidRegister::Ecx, 1 << 3 | 1 << 4 | 1 << 5 | 1 << 7 | 1 << 16),
    (7, 0, CpuidRegister::Edx, 1 << 2 | 1 << 3 | 1 << 20 | 1 << 22 | 1 << 23 | 1 << 24 | 1 << 25),
    (7, 1, CpuidRegister::Eax, !0),
    (7, 2, CpuidRegister::Edx, !(1 << 4)),
    (0xa, 0, CpuidRegister::Eax, !0),
    (0xd, 0, CpuidRegister::Eax, !7),
    (0xd, 1, CpuidRegister::Ecx, !0),
];

#[test]
fn no_model_shows_what_engines_lack() {
    let everything = FeatureSet::from_cpuid(|_, _| CpuidResult::new(!0, !0, !0, !0));
    for name in CpuModel::names() {
        let model = model(name).fitted_to(everything);
        for &(leaf, subleaf, register, mask) in HIDDEN {
            let value = register.of(&model.cpuid(leaf, subleaf, &CONTEXT));
            assert_eq!(value & mask, 0, "{name}: leaf {leaf:#x}.{subleaf} {register:?}");
        }
        assert!(!model.has(Feature::Monitor));
    }
}

#[test]
fn cpuid_reports_exactly_the_features_of_the_model() {
    for name in CpuModel::names() {
        let model = model(name);
        let seen = FeatureSet::from_cpuid(|leaf, subleaf| model.cpuid(leaf, subleaf, &CONTEXT));
        assert_eq!(seen, model.features(), "{name}");
    }
}

#[test]
fn leaf_7_says_how_many_sub_leaves_it_has() {
    let v2 = model("x86-64-v2");
    assert_eq!(v2.cpuid(7, 0, &CONTEXT).eax, 2);
    assert_eq!(v2.cpuid(7, 2, &CONTEXT), CpuidResult::new(0, 0, 0, 1 << 4));
    let without = v2.without(Feature::BhiCtrl);
    assert_eq!((without.cpuid(7, 0, &CONTEXT).eax, without.cpuid(7, 2, &CONTEXT).edx), (0, 0));
}

#[test]
fn each_level_contains_the_one_before() {
    let (v2, v3) = (model("x86-64-v2").features(), model("x86-64-v3").features());
    assert!(v2.difference(v3).is_empty());
    assert!(!v2.has(Feature::Avx) && !v2.has(Feature::Xsave) && v3.has(Feature::Avx2));
}

#[test]
fn host_like_follows_the_host_and_the_others_do_not() {
    let old = FeatureSet::of(&[Feature::Sse, Feature::Sse2, Feature::Aes]);
    let fitted = model("host-like").fitted_to(old);
    assert!(fitted.has(Feature::Aes) && !fitted.has(Feature::Avx) && !fitted.has(Feature::Fma));
    assert!(fitted.missing_on(old).is_empty());
    let v3 = model("x86-64-v3").fitted_to(old);
    assert_eq!(v3, model("x86-64-v3"));
    assert!(v3.missing_on(old).has(Feature::Avx2));
}

#[test]
fn a_host_that_executes_all_itself_takes_away_what_no_level_promises_and_nothing_else() {
    let v3 = model("x86-64-v3");
    let host = v3.features().difference(FeatureSet::of(&[Feature::BhiCtrl, Feature::Pcid, Feature::Avx2]));
    let limited = v3.clone().limited_to(host);
    assert!(!limited.has(Feature::BhiCtrl) && !limited.has(Feature::Pcid) && limited.has(Feature::Avx2));
    assert_eq!(limited.lacking_on(host), FeatureSet::of(&[Feature::Avx2]));
    assert_eq!(v3.clone().limited_to(v3.features()), v3);
}

#[test]
fn xsave_sizes_follow_xcr0() {
    let v3 = model("x86-64-v3");
    let sizes = |xcr0| {
        let r = v3.cpuid(0xd, 0, &CpuidContext { xcr0, ..CONTEXT });
        (r.eax, r.ebx, r.ecx)
    };
    assert_eq!(sizes(1), (7, 576, 832));
    assert_eq!(sizes(7), (7, 832, 832));
    let avx = v3.cpuid(0xd, 2, &CONTEXT);
    assert_eq!((avx.eax, avx.ebx), (256, 576));
    assert_eq!(v3.cpuid(0xd, 1, &CONTEXT).eax, 0xf);
    assert_eq!(model("x86-64-v2").cpuid(0xd, 0, &CONTEXT), CpuidResult::default());
}

#[test]
fn topology_leaves_agree_with_each_other() {
    let m = model("x86-64-v3");
    for vcpu_count in [1, 2, 3, 4, 7, 64, 300] {
        let context = CpuidContext { vcpu_count, apic_id: vcpu_count - 1, ..CONTEXT };
        let cores = m.cpuid(0xb, 1, &context);
        assert!(1 << cores.eax >= vcpu_count, "{vcpu_count}");
        assert_eq!((cores.ebx, cores.ecx >> 8, cores.edx), (vcpu_count, 2, vcpu_count - 1));
        assert_eq!(m.cpuid(0x1f, 1, &context), cores);
        let legacy = m.cpuid(1, 0, &context);
        assert_eq!(legacy.ebx >> 16 & 0xff, (1u32 << cores.eax).min(255));
        assert_eq!(legacy.edx >> 28 & 1 != 0, vcpu_count > 1);
        assert_eq!(m.cpuid(4, 3, &context).eax >> 14 & 0xfff, (1 << cores.eax) - 1);
        assert_eq!(m.cpuid(0xb, 2, &context).ebx, 0);
    }
}

#[test]
fn osxsave_mirrors_cr4() {
    let with = CpuidContext { cr4: Cr4::OSXSAVE.bits(), ..CONTEXT };
    let bit = |context| model("x86-64-v3").cpuid(1, 0, context).ecx >> 27 & 1;
    assert_eq!((bit(&CONTEXT), bit(&with)), (0, 1));
}

#[test]
fn the_tsc_ratio_gives_back_the_frequency() {
    for tsc_khz in [1_000_000, 2_500_000, 2_499_982, 3_999_999, 1_193_182] {
        let r = model("x86-64-v3").cpuid(0x15, 0, &CpuidContext { tsc_khz, ..CONTEXT });
        assert_eq!((r.ecx / 1000).checked_mul(r.ebx).unwrap() / r.eax, tsc_khz);
    }
}

#[test]
fn the_hypervisor_signature_is_kvms() {
    let r = model("x86-64-v2").cpuid(HYPERVISOR_LEAF, 0, &CONTEXT);
    let text: Vec<u8> = [r.ebx, r.ecx, r.edx].iter().flat_map(|w| w.to_le_bytes()).collect();
    assert_eq!(&text, b"KVMKVMKVM\0\0\0");
    let clock = model("x86-64-v2").cpuid(MAX_HYPERVISOR_LEAF, 0, &CONTEXT);
    assert_eq!((clock.eax, clock.ebx), (2_500_000, 1_000_000));
}

#[test]
fn leaves_out_of_range_answer_like_the_highest_basic_one() {
    let m = model("x86-64-v3");
    for leaf in [0x20, 0x3fff_ffff, 0x8000_0009, u32::MAX] {
        assert_eq!(m.cpuid(leaf, 1, &CONTEXT), m.cpuid(MAX_BASIC_LEAF, 1, &CONTEXT));
    }
    assert_eq!(m.cpuid(0x4000_0100, 0, &CONTEXT), CpuidResult::default());
}

#[test]
fn the_brand_string_is_terminated_and_readable() {
    for name in CpuModel::names() {
        let m = model(name);
        let text: Vec<u8> = (0x8000_0002..=0x8000_0004)
            .map(|leaf| m.cpuid(leaf, 0, &CONTEXT))
            .flat_map(|r| [r.eax, r.ebx, r.ecx, r.edx])
            .flat_map(u32::to_le_bytes)
            .collect();
        let end = text.iter().position(|b| *b == 0).unwrap();
        assert_eq!(std::str::from_utf8(&text[..end]).unwrap(), m.brand);
    }
}

#[test]
fn leaves_without_subleaves_ignore_ecx() {
    let model = CpuModel::named("x86-64-v3").unwrap();
    for leaf in [0, 1, 2, 6, 0x15, 0x16, 0x4000_0001, 0x8000_0001, 0x8000_0008] {
        assert_eq!(
            model.cpuid(leaf, 0, &CONTEXT),
            model.cpuid(leaf, 0xdead_beef, &CONTEXT),
            "leaf {leaf:#x}"
        );
    }
}
