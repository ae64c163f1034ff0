use super::*;
use crate::folder::testing::wanted;
use crate::{Mount, MountSource, Wanted};

fn volumes() -> (tempfile::TempDir, Volumes) {
    let dir = tempfile::tempdir().unwrap();
    let all = Volumes::open(dir.path()).unwrap();
    (dir, all)
}

fn named(name: &str) -> NewVolume {
    NewVolume { name: Some(name.to_owned()), ..NewVolume::default() }
}

fn names(all: &Volumes) -> Vec<String> {
    all.list().unwrap().into_iter().map(|volume| volume.info.name).collect()
}

fn seeing(volume: &str, remove: bool) -> Wanted {
    let source = MountSource::volume(volume, true);
    let mount = Mount { source, target: "/data".to_owned(), read_only: false };
    Wanted { mounts: vec![mount], remove, ..wanted() }
}

const NO_FILL: Option<Fill<'_, Error>> = None;

#[test]
fn a_volume_is_made_once_and_is_what_it_was_made() {
    let (_dir, all) = volumes();
    let labels = BTreeMap::from([("a".to_owned(), "b".to_owned())]);
    let made = all.create(NewVolume { labels: labels.clone(), ..named("v") }).unwrap();
    fs::write(made.data().join("file"), "x").unwrap();
    let again = all.create(named("v")).unwrap();
    assert_eq!((again.info(), &again.info.labels), (made.info(), &labels));
    let nameless = all.create(NewVolume::default()).unwrap();
    assert!(nameless.info.anonymous && folder::is_id(&nameless.info.name));
    assert_eq!(all.create(named(&nameless.info.name)).unwrap(), nameless);
    for name in ["", ".", "..", "a/b", "-a", "../workloads", &"f".repeat(64)] {
        assert!(matches!(all.create(named(name)), Err(Error::BadName { .. })), "{name:?}");
        assert!(all.find(name).unwrap_err().is_not_found(), "{name:?}");
    }
    all.remove("v").unwrap();
    assert_eq!(names(&all), [nameless.info.name]);
}

#[test]
fn one_in_use_is_not_removed_and_the_error_says_by_whom() {
    let (dir, all) = volumes();
    let held = all.hold_new(named("v"), NO_FILL).unwrap();
    let message = all.remove("v").unwrap_err().to_string();
    assert_eq!(message, "volume v is used by a command in the foreground");
    assert_eq!(all.prune(|_| true).unwrap().0, Vec::<String>::new());
    let workloads = Workloads::open(dir.path()).unwrap();
    let web = workloads.create(Some("web".to_owned()), seeing("v", false)).unwrap();
    drop(held);
    assert_eq!(all.remove("v").unwrap_err().to_string(), "volume v is used by web");
    workloads.remove(&web, crate::Running::Stays).unwrap();
    all.remove("v").unwrap();
    assert!(all.hold("v").unwrap_err().is_not_found());
}

#[test]
fn a_temporary_one_goes_with_its_workload_and_others_stay() {
    let (dir, all) = volumes();
    let temporary = NewVolume { temporary: true, ..NewVolume::default() };
    let name = all.create(temporary).unwrap().info.name;
    all.create(named("kept")).unwrap();
    let workloads = Workloads::open(dir.path()).unwrap();
    let folder = workloads.create(None, seeing(&name, true)).unwrap();
    all.clean().unwrap();
    assert_eq!(names(&all).len(), 2, "it is used");
    workloads.remove(&folder, crate::Running::Stays).unwrap();
    assert_eq!(names(&all), ["kept"]);
}

#[test]
fn an_empty_one_is_filled_once_whole_or_not_at_all() {
    let (_dir, all) = volumes();
    let mut fill = |folder: &Path| -> Result<()> {
        fs::write(folder.join("half"), "x").unwrap();
        Err(Error::Refused("no more".to_owned()))
    };
    assert!(all.hold_new(named("v"), Some(&mut fill)).is_err());
    let data = all.find("v").unwrap().data();
    assert_eq!(fs::read_dir(&data).unwrap().count(), 0);
    let mut calls = 0;
    let mut fill = |folder: &Path| -> Result<()> {
        calls += 1;
        fs::write(folder.join("whole"), "x").map_err(Error::file("write", folder))
    };
    for _ in 0..2 {
        let held = all.hold_new(named("v"), Some(&mut fill)).unwrap();
        assert!(held.volume().data().join("whole").exists());
    }
    assert_eq!(calls, 1);
    all.create(named("other")).unwrap();
    let _held = all.hold("other").unwrap();
    let mut never = |_: &Path| -> Result<()> { panic!("somebody uses it") };
    all.hold_new(named("other"), Some(&mut never)).unwrap();
}

#[test]
fn options_are_dockers_for_a_folder_that_is_elsewhere() {
    let (_dir, all) = volumes();
    let elsewhere = tempfile::tempdir().unwrap();
    fs::write(elsewhere.path().join("kept"), "x").unwrap();
    let options = |pairs: &[(&str, &str)]| {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect::<BTreeMap<_, _>>()
    };
    let path = elsewhere.path().to_str().unwrap();
    let bind = options(&[("type", "none"), ("o", "bind"), ("device", path)]);
    let made = all.create(NewVolume { options: bind, ..named("v") }).unwrap();
    assert_eq!(made.data(), elsewhere.path());
    for wrong in [
        &[("type", "nfs"), ("device", path)][..],
        &[("o", "bind")],
        &[("device", "/no/such/folder")],
        &[("device", "relative")],
        &[("size", "10m")],
    ] {
        let new = NewVolume { options: options(wrong), ..named("w") };
        assert!(matches!(all.create(new), Err(Error::BadOption { .. })), "{wrong:?}");
    }
    let other = NewVolume { options: options(&[("device", "/")]), ..named("v") };
    assert!(all.create(other).unwrap_err().to_string().contains("other options"));
    all.remove("v").unwrap();
    assert!(elsewhere.path().join("kept").exists(), "what is elsewhere is not ours to remove");
}

#[test]
fn what_crashes_left_is_no_volume() {
    let (dir, all) = volumes();
    let place = dir.path().join("volumes");
    fs::create_dir_all(place.join(".v/data")).unwrap();
    fs::create_dir(place.join("broken")).unwrap();
    fs::write(place.join("broken/volume.json"), "{").unwrap();
    assert_eq!(names(&all), Vec::<String>::new());
    all.create(named("v")).unwrap();
    assert_eq!(names(&all), ["v"]);
    assert!(matches!(all.find("broken"), Err(Error::Json { .. })));
}
