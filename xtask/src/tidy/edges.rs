//! Who may know whom. The table is the drawing in `ARCHITECTURE.md`; an edge that is missing here is one that
//! must not be.

use super::Complaint;
use super::metadata::Package;

/// Crate, the crates of ours it may depend on, and those its tests may depend on beside them.
const ALLOWED: &[(&str, &[&str], &[&str])] = &[
    (
        "strata",
        &[
            "agent",
            "api",
            "arch",
            "archive",
            "build",
            "container",
            "disk",
            "engine",
            "engine_kvm",
            "engine_soft",
            "fuse",
            "image",
            "machine",
            "names",
            "net",
            "protocol",
            "registry",
            "sandbox",
            "workload",
        ],
        &[],
    ),
    ("api", &["archive", "image", "registry", "workload"], &[]),
    ("image", &[], &[]),
    ("registry", &["image"], &[]),
    ("build", &["image"], &["archive", "container"]),
    ("machine", &["arch", "devices", "disk", "engine", "fuse", "memory", "net", "protocol", "state"], &[]),
    ("devices", &["disk", "fuse", "memory", "net", "state"], &[]),
    ("disk", &[], &[]),
    ("names", &[], &[]),
    ("net", &[], &[]),
    ("fuse", &[], &[]),
    ("engine", &["arch", "memory"], &[]),
    ("engine_kvm", &["arch", "engine", "memory"], &["machine"]),
    ("engine_soft", &["arch", "engine", "memory"], &["machine"]),
    ("arch", &["state"], &[]),
    ("memory", &[], &[]),
    ("state", &[], &[]),
    ("sandbox", &[], &[]),
    ("archive", &[], &[]),
    ("container", &[], &[]),
    ("protocol", &[], &[]),
    ("workload", &[], &[]),
    ("agent", &["archive", "protocol"], &[]),
    ("xtask", &["image"], &[]),
];

/// Complains of edges that are not in the table, of crates that are not, and of rows without a crate.
pub fn check(packages: &[Package]) -> Vec<Complaint> {
    let mut complaints = Vec::new();
    for package in packages {
        let manifest = package.folder.join("Cargo.toml");
        let Some((_, allowed, in_tests)) = ALLOWED.iter().find(|row| row.0 == package.name) else {
            complaints.push(Complaint::file(
                &manifest,
                "this crate is not in the table of xtask/src/tidy/edges.rs",
            ));
            continue;
        };
        for other in package.dependencies.iter().filter(|d| !allowed.contains(&d.as_str())) {
            complaints
                .push(Complaint::file(&manifest, format!("{} must not depend on {other}", package.name)));
        }
        let test_only = package.test_dependencies.iter().map(String::as_str);
        for other in test_only.filter(|d| !allowed.contains(d) && !in_tests.contains(d) && *d != package.name)
        {
            let text = format!("the tests of {} must not depend on {other}", package.name);
            complaints.push(Complaint::file(&manifest, text));
        }
    }
    for (name, ..) in ALLOWED.iter().filter(|row| !packages.iter().any(|p| p.name == row.0)) {
        complaints
            .push(Complaint::file("xtask/src/tidy/edges.rs".as_ref(), format!("no crate is called {name}")));
    }
    complaints
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, dependencies: &[&str]) -> Package {
        Package {
            name: name.into(),
            folder: format!("crates/{name}").into(),
            dependencies: dependencies.iter().map(|d| (*d).to_owned()).collect(),
            test_dependencies: Vec::new(),
        }
    }

    fn about(packages: &[Package], text: &str) -> bool {
        check(packages).iter().any(|complaint| complaint.to_string().contains(text))
    }

    #[test]
    fn an_engine_that_knows_devices_is_refused() {
        let packages = [package("engine_soft", &["arch", "devices"])];
        assert!(about(&packages, "engine_soft must not depend on devices"));
        assert!(!about(&packages, "engine_soft must not depend on arch"));
    }

    #[test]
    fn a_crate_nobody_placed_is_refused() {
        assert!(about(&[package("helper", &[])], "not in the table"));
    }
}
