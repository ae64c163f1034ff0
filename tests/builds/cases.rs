//! The Containerfiles that both build.

/// One of them.
pub struct Case<'a> {
    pub name: &'a str,
    pub text: &'a str,
    /// `--build-arg`, each.
    pub args: &'a [&'a str],
    /// The stage to stop at; empty for the last.
    pub target: &'a str,
    /// What differs on purpose.
    pub kept: &'a [&'a str],
}

const fn case(name: &'static str, text: &'static str) -> Case<'static> {
    Case { name, text, args: &[], target: "", kept: &[] }
}

/// What cases with commands begin with.
pub const BASE: &str = "\
FROM scratch
COPY busybox /bin/busybox
COPY busybox /bin/sh
COPY etc /etc
ENV PATH=/bin
RUN busybox mkdir -p /tmp /proc /sys /dev /run && busybox --install /bin && chmod 1777 /tmp
";

pub const CASES: &[Case<'static>] = &[
    case("empty", "FROM scratch\nLABEL only=label\n"),
    Case {
        // buildah takes away the bit that makes a program run as its owner; docker leaves it.
        kept: &["C /all", "C /all/setuid", "C /setuid"],
        ..case(
            "copy-forms",
            "FROM scratch\nCOPY a /x\nCOPY a /y/\nCOPY a b.txt /z/\nCOPY [\"with space.txt\", \"/s/\"]\nCOPY d /d1\nCOPY d/ /d2/\n\
         COPY d/. /d3\nCOPY . /all/\nCOPY setuid /\nCOPY ./a .//b/../c\n",
        )
    },
    case(
        "wildcards",
        "FROM scratch\nCOPY *.txt /w/\nCOPY ?.txt /q/\nCOPY d/s* /ds/\nCOPY [a-b]* /r/\nCOPY d/*/y /star/\nCOPY a* /one\n",
    ),
    case(
        "links-in-sources",
        "FROM scratch\nCOPY d/link /followed\nCOPY to-a /to-a\nCOPY to-d /to-d\nCOPY d /d\n",
    ),
    case(
        "links-in-destinations",
        "FROM scratch\nCOPY links/ /\nCOPY a /bin/through\nCOPY b.txt /bin/\nCOPY d /bin/d\nCOPY a /bin/tool\n",
    ),
    case("same-file-twice", "FROM scratch\nCOPY same /same\nCOPY same/one /same/three\n"),
    case(
        "merge",
        "FROM scratch\nCOPY d /m\nCOPY etc /m\nCOPY d/sub /m/sub\nCOPY a /m/x\nCOPY a b.txt /m\nCOPY c.txt /m/sub\n",
    ),
    Case {
        // buildah makes the folder of WORKDIR when something uses it, docker at once.
        kept: &["D /w"],
        ..case(
            "owners",
            "FROM scratch\nCOPY etc /etc\nCOPY --chown=7:8 d /d\nCOPY --chown=7 a /n/a7\nCOPY --chown=me:them a /m1\n\
         COPY --chown=me a /m2\nCOPY --chown=9:them b.txt /new/folder/\nUSER me\nCOPY a /as-root\nWORKDIR /w\n",
        )
    },
    case(
        "modes",
        "FROM scratch\nCOPY --chmod=0640 a /a\nCOPY --chmod=755 d /d\nCOPY --chown=5:6 --chmod=4711 a b.txt /own/new/\n",
    ),
    case(
        "add",
        "FROM scratch\nADD t.tgz /t/\nADD t.tar /u\nADD t.tbz /v\nADD plain.gz /p/\nADD a /adda\nADD d /addd\nADD *.txt /w/\n",
    ),
    case("add-owner", "FROM scratch\nADD --chown=1:2 t.tgz /v/\nADD --chown=1:2 a /w/\n"),
    case("add-through-link", "FROM scratch\nCOPY links/ /\nADD t.tar /bin\nADD t.tgz /\n"),
    Case {
        // The same; and docker writes paths without a slash at their end.
        kept: &["C /a", "D /a/b", "WorkingDir"],
        ..case(
            "workdir",
            "FROM scratch\nWORKDIR rel\nCOPY a .\nWORKDIR /a/b\nWORKDIR ../c\nENV D=x\nWORKDIR $D/y\nCOPY a ./sub/\nCOPY a ../up\nWORKDIR /a/b/\n",
        )
    },
    case("workdir-through-link", "FROM scratch\nCOPY links/ /\nWORKDIR /bin/in\nCOPY a .\n"),
    Case {
        args: &["G=given", "U=unused-by-the-first"],
        ..case(
            "arg-scopes",
            "ARG G=1\nARG TOP=scratch\nFROM $TOP AS s1\nARG G\nARG H=2\nENV E=$G-$H-$U-$TOP\nFROM ${TOP} AS s2\nENV F=${G:-none}\n\
             ARG G=own\nENV I=$G\nARG G\nENV J=$G\nARG U\nENV K=$U\n",
        )
    },
    case(
        "expansion",
        "FROM scratch\nENV A=a B=\"b c\" EMPTY=\nENV C=${A}x D=$A-$B E=${NONE:-y} F=${A:-y} G=${A:+y} H=${NONE:+y} I=\\$A J='$A' K=\"$A\"\n\
         ENV L=${EMPTY:-y} O=${EMPTY:+y} P=${NONE:-$A} Q=a\\ b R=\"a\\\"b\"\nENV S old style $A  with   spaces\n\
         ENV A=new T=$A\nENV U=$A\n",
    ),
    case(
        "labels",
        "FROM scratch\nLABEL one=1 two=\"2 two\" \"three\"=3 four='f $X'\nLABEL one=again\nLABEL multi=\"line \\\ncontinued\" x.y/z=w\nLABEL old style\nENV V=v\nLABEL $V=$V\n",
    ),
    case("cmd-shell", "FROM scratch\nCMD echo $HOME  two\n"),
    case("cmd-of-base-goes", "FROM scratch AS p\nCMD [\"base\"]\nFROM p\nENTRYPOINT [\"/e\", \"x\"]\n"),
    case("cmd-stays", "FROM scratch\nCMD [\"mine\"]\nENTRYPOINT exec /e\n"),
    case("cmd-empty", "FROM scratch AS p\nENTRYPOINT [\"/e\"]\nCMD [\"c\"]\nFROM p\nENTRYPOINT []\nCMD []\n"),
    Case {
        // To buildah SHELL is for RUN alone, to docker for whatever has a shell form.
        kept: &["Cmd", "Entrypoint"],
        ..case("shell", "FROM scratch\nSHELL [\"/bin/x\", \"-ec\"]\nCMD a b\nENTRYPOINT c d\n")
    },
    Case {
        // As docker, each port of a range by itself, and protocols in lower case.
        kept: &["ExposedPorts"],
        ..case("expose", "FROM scratch\nENV P=99\nEXPOSE 80 53/udp 8000-8002/tcp $P 80/TCP 70/sctp\n")
    },
    case("user", "FROM scratch\nENV W=who\nUSER 1:2\nUSER name:group\nUSER $W\n"),
    case(
        "volumes",
        "FROM scratch\nVOLUME /a /b\nVOLUME [\"/c d\", \"/e\"]\nENV V=/v\nVOLUME $V\nCOPY a /a/in\n",
    ),
    case(
        "stopsignal",
        "FROM scratch\nENV S=9\nSTOPSIGNAL SIGTERM\nSTOPSIGNAL $S\nMAINTAINER some body <x@y>\n",
    ),
    case(
        "healthcheck",
        "FROM scratch\nHEALTHCHECK --interval=1m30s --timeout=5s --start-period=2s --retries=4 CMD curl -f http://x || exit 1\n",
    ),
    case("healthcheck-exec", "FROM scratch\nHEALTHCHECK CMD [\"/h\", \"a b\"]\n"),
    case("healthcheck-none", "FROM scratch AS p\nHEALTHCHECK CMD x\nFROM p\nHEALTHCHECK NONE\n"),
    case(
        "syntax",
        "# escape=`\n# a comment\nfrom scratch as First\n\n  # indented\nlabel a=b `\n  # inside\n\n  c=d\nEnv X=1`\n2\nCoPy a `\n  /dest\n",
    ),
    case(
        "onbuild",
        "FROM scratch AS p\nONBUILD COPY a /on\nONBUILD ENV X=1\nENV Y=2\nFROM p AS q\nCOPY b.txt /after\n",
    ),
    Case {
        target: "p",
        ..case("onbuild-kept", "FROM scratch AS p\nONBUILD COPY a /on\nONBUILD RUN x y\nFROM p\n")
    },
    Case {
        target: "mid",
        ..case(
            "target",
            "FROM scratch AS first\nCOPY a /a\nFROM first AS mid\nCOPY b.txt /b\nFROM mid\nCOPY none /\n",
        )
    },
    Case {
        // The same.
        kept: &["C /by-name"],
        ..case(
            "copy-from",
            "FROM scratch AS one\nCOPY d /d\nCOPY links/ /\nCOPY --chown=3:4 setuid /s\nFROM scratch\nCOPY --from=0 /d /by-number\nCOPY --from=one /s /by-name\n\
         COPY --from=one /bin /bin\nCOPY --from=one /d/link /followed\nCOPY --from=one d/s* /star/\nCOPY --from=localhost/base /etc/passwd /by-image\n",
        )
    },
    Case {
        // The same.
        kept: &["C /all", "C /all/setuid"],
        ..case("dockerignore", "FROM scratch\nCOPY . /all\nCOPY d /d\nCOPY ignored /i\n")
    },
    case(
        "run",
        "FROM localhost/base\nENV E=env\nARG A=arg\nRUN echo $E $A > /shell && echo \"$(pwd)\" >> /shell\nRUN [\"sh\", \"-c\", \"echo $E $0 > /exec\", \"zero\"]\n\
         WORKDIR /w\nRUN pwd > here && mkdir -m 2770 sgid && ln -s here link && ln here hard\nUSER me\nRUN id -u > /tmp/u; id -g > /tmp/g; umask > /tmp/umask\n\
         USER 5:6\nRUN id -u > /tmp/u56; id -g > /tmp/g56; echo $HOME > /tmp/home\n",
    ),
    case(
        "run-removes",
        "FROM localhost/base\nCOPY d /d\nRUN rm -r /d/sub && rm /d/x && echo new > /d/x\nRUN rm -r /d && mkdir /d && echo only > /d/only\nRUN mv /d /e && rmdir /tmp\nCOPY a /e/x\n",
    ),
    Case {
        // The same.
        kept: &["Cmd"],
        ..case(
            "run-shell",
            "FROM localhost/base\nSHELL [\"/bin/busybox\", \"sh\", \"-ec\"]\nRUN echo a > /a; \\\n  echo b > /b\nCMD x\n",
        )
    },
    case(
        "volume-after-run",
        "FROM localhost/base\nRUN mkdir /v && echo 1 > /v/before\nVOLUME /v\nCOPY a /v/copied\n",
    ),
    Case {
        // buildah makes the folder, and throws away what commands write there; with docker nobody makes it.
        kept: &["A /v"],
        ..case("volume-before-run", "FROM localhost/base\nVOLUME /v\nRUN echo 1 > /v/after; true\n")
    },
];

/// What both refuse, and what is said of it here.
pub const REFUSED: &[(&str, &str)] = &[
    ("FROM scratch\nCOPY none /\n", "\"none\" is not in the context"),
    ("FROM scratch\nCOPY *.none /x/\n", "\"*.none\" is not in the context"),
    ("FROM scratch\nCOPY ignored/no /x\n", ".dockerignore"),
    ("FROM scratch\nCOPY d/broken /x\n", "a link that leads to nothing"),
    ("FROM scratch\nCOPY a\n", "COPY wants sources and a destination"),
    ("FROM scratch\nCOPY --from=nowhere:1 a /\n", "nowhere:1"),
    ("FROM scratch\nFLY a\n", "unknown instruction \"FLY\""),
    ("FROM scratch\nCOPY --chown=nobody a /\n", "nobody"),
    (
        "FROM scratch AS one\nCOPY d /d\nFROM scratch\nCOPY --from=one d/* /x/\n",
        "a link that leads to nothing",
    ),
    ("FROM scratch\nHEALTHCHECK --interval=x CMD a\n", "wants a time"),
    ("COPY a /\n", "FROM"),
    ("FROM localhost/base\nRUN exit 3\n", "RUN exit 3"),
];
