//! Media types: which documents and layers are those of an image, in OCI's words and in Docker's.
//!
//! Sources: OCI image specification 1.1, `media-types.md`; Docker image manifest version 2, schema 2. Everything else is not an
//! image: manifests of the first schema, artifacts, encrypted layers.

/// An OCI image manifest.
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// An OCI image index: manifests for several platforms.
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Docker's manifest.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Docker's manifests for several platforms.
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

/// Docker's type of layer and OCI's, which are the same bytes.
const LAYERS: &[(&str, &str)] = &[
    ("application/vnd.docker.image.rootfs.diff.tar", "application/vnd.oci.image.layer.v1.tar"),
    ("application/vnd.docker.image.rootfs.diff.tar.gzip", "application/vnd.oci.image.layer.v1.tar+gzip"),
    ("application/vnd.docker.image.rootfs.diff.tar.zstd", "application/vnd.oci.image.layer.v1.tar+zstd"),
    (
        "application/vnd.docker.image.rootfs.foreign.diff.tar",
        "application/vnd.oci.image.layer.nondistributable.v1.tar",
    ),
    (
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
    ),
];

/// Manifests for several platforms.
pub fn is_index(media_type: &str) -> bool {
    matches!(media_type, INDEX | DOCKER_LIST)
}

/// The manifest of one image.
pub fn is_manifest(media_type: &str) -> bool {
    matches!(media_type, MANIFEST | DOCKER_MANIFEST)
}

/// The configuration of an image.
pub fn is_config(media_type: &str) -> bool {
    matches!(media_type, CONFIG | DOCKER_CONFIG)
}

/// A layer of an image. How it is compressed is seen in its bytes.
pub fn is_layer(media_type: &str) -> bool {
    let extra = "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd";
    media_type == extra || LAYERS.iter().any(|(docker, oci)| media_type == *docker || media_type == *oci)
}

/// OCI's word for a type of Docker's; every other type stays as it is.
pub(crate) fn to_oci(media_type: &str) -> &str {
    match media_type {
        DOCKER_MANIFEST => MANIFEST,
        DOCKER_LIST => INDEX,
        DOCKER_CONFIG => CONFIG,
        other => LAYERS.iter().find(|(docker, _)| *docker == other).map_or(other, |(_, oci)| oci),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dockers_types_are_known_under_both_names() {
        assert!(is_index(DOCKER_LIST) && is_manifest(DOCKER_MANIFEST) && is_config(DOCKER_CONFIG));
        for (docker, oci) in LAYERS {
            assert!(is_layer(docker) && is_layer(oci));
            assert_eq!((to_oci(docker), to_oci(oci)), (*oci, *oci));
        }
        assert!(
            !is_layer("application/vnd.in-toto+json")
                && !is_config("application/vnd.cncf.helm.config.v1+json")
        );
    }
}
