//! How `--volume` and `--mount` are written: docker's words.

use std::collections::BTreeMap;
use std::path::{Component, Path};

use workload::{Mount, MountSource, Propagation};

use crate::size::parse_size;

/// What may stand behind the last colon beside what is a [`Propagation`]; what is not `ro` or `nocopy` is what happens anyway.
const OPTIONS: [&str; 5] = ["ro", "rw", "nocopy", "z", "Z"];

fn is_option(text: &str) -> bool {
    OPTIONS.contains(&text) || Propagation::parse(text).is_some()
}

/// Whether `text` is a value of `--volume`.
///
/// # Errors
/// What it should be.
pub fn check_volume(text: &str) -> Result<String, String> {
    volume(text).map(|_| text.to_owned())
}

/// Whether `text` is a value of `--mount`.
///
/// # Errors
/// What it should be.
pub fn check_mount(text: &str) -> Result<String, String> {
    mount(text).map(|_| text.to_owned())
}

/// Understands one `[HOST:|NAME:]PATH[:OPTIONS]`.
///
/// # Errors
/// What it should be.
pub fn volume(text: &str) -> Result<Mount, String> {
    let (rest, options) = match text.rsplit_once(':') {
        Some((rest, options)) if options.split(',').all(is_option) => (rest, options),
        _ => (text, ""),
    };
    let has = |wanted: &str| options.split(',').any(|option| option == wanted);
    let (source, target) = rest.rsplit_once(':').unwrap_or(("", rest));
    if rest.starts_with(':') {
        return Err(format!("{text:?} is not [HOST:|NAME:]PATH[:ro|rw]"));
    }
    let propagation = options.split(',').find_map(Propagation::parse).unwrap_or_default();
    let source = if source.starts_with('/') || source.starts_with("./") || source == "." {
        MountSource::Bind { source: source.to_owned(), propagation }
    } else if !propagation.is_private() {
        return Err(format!("{text:?}: {} is of folders of this host", propagation.word()));
    } else {
        named(source, !has("nocopy"))?
    };
    Ok(Mount { source, target: place(target)?, read_only: has("ro") })
}

fn named(name: &str, copy: bool) -> Result<MountSource, String> {
    if !name.is_empty() && !is_anonymous(name) {
        workload::parse_name(name).map_err(|rule| {
            format!("{name:?} is no path, which begins with / or ./, and no volume: {rule}")
        })?;
    }
    Ok(MountSource::volume(name, copy))
}

/// The form of the names that volumes get whom nobody gives one.
fn is_anonymous(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|b| b.is_ascii_hexdigit())
}

/// A path in the workload's root, in its plain form.
///
/// # Errors
/// What it should be.
pub fn place(target: &str) -> Result<String, String> {
    let parts: Vec<_> = Path::new(target).components().collect();
    let is_plain = matches!(parts[..], [Component::RootDir, _, ..])
        && parts[1..].iter().all(|part| matches!(part, Component::Normal(_)));
    if !is_plain {
        return Err(format!("{target:?} is not an absolute path below / without .."));
    }
    let names: Vec<_> = parts[1..].iter().map(|part| part.as_os_str().to_string_lossy()).collect();
    Ok(format!("/{}", names.join("/")))
}

/// Understands one `KEY=VALUE,…`, as docker's `--mount` has it.
///
/// # Errors
/// What it should be.
pub fn mount(text: &str) -> Result<Mount, String> {
    let mut said = Said { kind: "volume".to_owned(), ..Said::default() };
    for field in fields(text)? {
        let (key, value) = field.split_once('=').unwrap_or((&field, ""));
        said.take(key, value)?;
    }
    let target = place(&said.target)?;
    if said.kind != "bind" && !said.propagation.is_private() {
        return Err("bind-propagation is of type=bind".to_owned());
    }
    let source = match said.kind.as_str() {
        "bind" if said.source.starts_with(['/', '.']) => {
            MountSource::Bind { source: said.source, propagation: said.propagation }
        }
        "bind" => return Err(format!("source {:?} is not a path of this host", said.source)),
        "volume" => match named(&said.source, !said.nocopy)? {
            MountSource::Volume { name, copy, .. } => {
                let (labels, options, subpath) = (said.labels, said.options, said.subpath);
                MountSource::Volume { name, copy, labels, options, subpath }
            }
            other => other,
        },
        "tmpfs" => MountSource::Tmpfs { options: said.memory.join(",") },
        other => return Err(format!("type={other}: it is bind, volume or tmpfs")),
    };
    Ok(Mount { source, target, read_only: said.read_only })
}

/// A path in a volume.
///
/// # Errors
/// It leads out of it.
fn subpath(text: &str) -> Result<&str, String> {
    let is_inside =
        Path::new(text).components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    is_inside.then_some(text).ok_or_else(|| format!("volume-subpath {text:?} is not a path in the volume"))
}

#[derive(Default)]
struct Said {
    kind: String,
    source: String,
    target: String,
    read_only: bool,
    propagation: Propagation,
    nocopy: bool,
    labels: BTreeMap<String, String>,
    options: BTreeMap<String, String>,
    subpath: String,
    memory: Vec<String>,
}

impl Said {
    fn take(&mut self, key: &str, value: &str) -> Result<(), String> {
        let pair = || {
            let (key, value) = value.split_once('=').unwrap_or((value, ""));
            (key.to_owned(), value.to_owned())
        };
        match key {
            "type" => value.clone_into(&mut self.kind),
            "source" | "src" => value.clone_into(&mut self.source),
            "target" | "dst" | "destination" => value.clone_into(&mut self.target),
            "readonly" | "ro" => self.read_only = flag(key, value)?,
            "volume-subpath" => subpath(value)?.clone_into(&mut self.subpath),
            "volume-nocopy" => self.nocopy = flag(key, value)?,
            "volume-label" => drop(self.labels.insert(pair().0, pair().1)),
            "volume-opt" => drop(self.options.insert(pair().0, pair().1)),
            "tmpfs-size" => {
                let size = parse_size(value).map_err(|reason| format!("tmpfs-size: {reason}"))?;
                self.memory.push(format!("size={size}"));
            }
            "tmpfs-mode" if u32::from_str_radix(value, 8).is_ok_and(|mode| mode <= 0o7777) => {
                self.memory.push(format!("mode={value}"));
            }
            // What happens anyway.
            "volume-driver" if value == "local" => {}
            "bind-propagation" if Propagation::parse(value).is_some() => {
                self.propagation = Propagation::parse(value).unwrap_or_default();
            }
            "consistency" => {}
            _ => return Err(format!("{key}={value} is nothing that can be done")),
        }
        Ok(())
    }
}

fn flag(key: &str, value: &str) -> Result<bool, String> {
    match value {
        "" | "true" | "1" => Ok(true),
        "false" | "0" => Ok(false),
        _ => Err(format!("{key}={value}: true or false")),
    }
}

/// Fields between commas; one that has commas stands in double quotes.
fn fields(text: &str) -> Result<Vec<String>, String> {
    let mut fields = vec![String::new()];
    let mut is_quoted = false;
    for letter in text.chars() {
        match letter {
            '"' => is_quoted = !is_quoted,
            ',' if !is_quoted => fields.push(String::new()),
            _ => fields.last_mut().expect("there is one from the beginning").push(letter),
        }
    }
    if is_quoted { Err(format!("{text:?} has a quotation mark without another")) } else { Ok(fields) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bind(source: &str, target: &str, read_only: bool) -> Mount {
        let source = MountSource::bind(source);
        Mount { source, target: target.to_owned(), read_only }
    }

    fn of_store(name: &str, target: &str, copy: bool) -> Mount {
        let source = MountSource::volume(name, copy);
        Mount { source, target: target.to_owned(), read_only: false }
    }

    #[test]
    fn a_volume_is_a_path_here_or_a_name_and_a_path_there() {
        assert_eq!(volume("/a:/b"), Ok(bind("/a", "/b", false)));
        assert_eq!(volume("./a/x:/b//c/:ro"), Ok(bind("./a/x", "/b/c", true)));
        assert_eq!(volume(".:/b:rw,z"), Ok(bind(".", "/b", false)));
        assert_eq!(volume("/with:colon:/b"), Ok(bind("/with:colon", "/b", false)));
        let source = MountSource::Bind { source: "/a".to_owned(), propagation: Propagation::RSlave };
        let slave = Mount { source, target: "/b".to_owned(), read_only: true };
        assert_eq!(volume("/a:/b:ro,rslave"), Ok(slave.clone()));
        assert_eq!(mount("type=bind,src=/a,dst=/b,ro,bind-propagation=rslave"), Ok(slave));
        assert_eq!(volume("name:/b"), Ok(of_store("name", "/b", true)));
        assert_eq!(volume("name:/b:nocopy"), Ok(of_store("name", "/b", false)));
        assert_eq!(volume("/b/c"), Ok(of_store("", "/b/c", true)));
    }

    #[test]
    fn a_mount_is_written_as_docker_has_it() {
        assert_eq!(mount("type=bind,src=/a,dst=/b,readonly"), Ok(bind("/a", "/b", true)));
        assert_eq!(mount("type=bind,\"source=/a,b\",target=/b"), Ok(bind("/a,b", "/b", false)));
        assert_eq!(mount("source=v,target=/b,volume-nocopy=true"), Ok(of_store("v", "/b", false)));
        assert_eq!(mount("target=/b"), Ok(of_store("", "/b", true)));
        let memory = mount("type=tmpfs,target=/b,tmpfs-size=1M,tmpfs-mode=1770").unwrap();
        assert_eq!(memory.source, MountSource::Tmpfs { options: "size=1048576,mode=1770".to_owned() });
        let opts = mount("src=v,dst=/b,volume-opt=device=/x,volume-label=a=b").unwrap();
        let MountSource::Volume { labels, options, .. } = opts.source else { panic!() };
        assert_eq!((&*labels["a"], &*options["device"]), ("b", "/x"));
    }

    #[test]
    fn what_is_no_volume_and_no_mount_is_refused() {
        for text in [
            "a",
            "/a:b",
            "/a:/",
            "/a:/b/../c",
            "/a:",
            ":/b",
            "/a:/b:wx",
            "../a:/b",
            "-x:/b",
            "",
            "a b:/c",
            "v:/b:rslave",
        ] {
            assert!(volume(text).is_err(), "{text}");
        }
        for text in [
            "",
            "type=bind,src=a,dst=/b",
            "type=nfs,dst=/b",
            "src=v",
            "dst=/b,fly=1",
            "type=bind,src=/a,dst=/b,bind-propagation=often",
            "src=v,dst=/b,bind-propagation=shared",
            "dst=/b,ro=maybe",
            "type=tmpfs,dst=/b,tmpfs-mode=99999",
            "\"dst=/b",
            "src=../x,dst=/b",
        ] {
            assert!(mount(text).is_err(), "{text}");
        }
    }
}
