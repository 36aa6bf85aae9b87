# shellcheck shell=bash
# A private apt: its own sources, lists, status and caches under tools/apt.
# Sourced by part scripts after lib.sh. The system's sources, lists and dpkg
# database are read (for the mirror's address) and never changed.
#
# Groups of suites, so that a part fetches only the lists it needs:
#   stable   bookworm, -updates, -security (if the machine has it), -backports
#   source   bookworm, source
#   sid      sid, binary and source

APT_RELEASE=bookworm
APT_KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg

# apt_mirror <release>: the address the machine's own apt uses for a release,
# from whichever format its sources are written in.
apt_mirror() {
	# shellcheck disable=SC2016 # apt's own variables
	apt-get indextargets --format '$(RELEASE) $(CODENAME) $(COMPONENT) $(REPO_URI)' 'Created-By: Packages' |
		awk -v want="$1" '$3 == "main" || $2 == "main" { if ($1 == want || $2 == want) { print $NF; exit } }'
}

# apt_setup <group>: write the configuration and, once per day, fetch the lists.
apt_setup() {
	local group=$1 dir=$TOOLS/apt/$1 mirror security
	[ -r "$APT_KEYRING" ] || die "$APT_KEYRING is missing" "apt-get install debian-archive-keyring"
	mirror=$(apt_mirror "$APT_RELEASE")
	[ -n "$mirror" ] || die "this machine's apt sources have no Debian $APT_RELEASE main" \
		"add Debian $APT_RELEASE to /etc/apt/sources.list, or use a $APT_RELEASE machine"
	mkdir -p "$dir/lists/partial" "$dir/archives/partial" "$dir/empty.d"
	: >"$dir/status"
	: >"$dir/preferences"
	case $group in
	stable)
		security=$(apt_mirror "$APT_RELEASE-security")
		{
			apt_source deb "$mirror" "$APT_RELEASE"
			apt_source deb "$mirror" "$APT_RELEASE-updates"
			apt_source deb "$mirror" "$APT_RELEASE-backports"
			[ -z "$security" ] || apt_source deb "$security" "$APT_RELEASE-security"
		} >"$dir/sources.list.new"
		;;
	source) apt_source deb-src "$mirror" "$APT_RELEASE" >"$dir/sources.list.new" ;;
	sid)
		{
			apt_source deb "$mirror" sid
			apt_source deb-src "$mirror" sid
		} >"$dir/sources.list.new"
		;;
	esac
	# The hooks that distributions and container images put into apt.conf.d
	# (cleaning the system's cache, telling the desktop) are none of ours; what
	# it says of proxies and transports stays in force.
	cat >"$dir/apt.conf" <<CONF
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Pre-Invoke;
#clear DPkg::Post-Invoke;
#clear DPkg::Pre-Install-Pkgs;
#clear Acquire::IndexTargets;
Acquire::IndexTargets::deb::Packages { MetaKey "\$(COMPONENT)/binary-\$(ARCHITECTURE)/Packages"; ShortDescription "Packages"; Description "\$(RELEASE)/\$(COMPONENT) \$(ARCHITECTURE) Packages"; Optional "0"; };
Acquire::IndexTargets::deb-src::Sources { MetaKey "\$(COMPONENT)/source/Sources"; ShortDescription "Sources"; Description "\$(RELEASE)/\$(COMPONENT) Sources"; Optional "0"; };
Dir::State "$dir";
Dir::State::lists "$dir/lists";
Dir::State::status "$dir/status";
Dir::Cache "$dir";
Dir::Cache::archives "$dir/archives";
Dir::Cache::pkgcache "pkgcache.bin";
Dir::Cache::srcpkgcache "srcpkgcache.bin";
Dir::Etc::sourcelist "$dir/sources.list";
Dir::Etc::sourceparts "$dir/empty.d";
Dir::Etc::preferences "$dir/preferences";
Dir::Etc::preferencesparts "$dir/empty.d";
APT::Sandbox::User "root";
APT::Install-Recommends "false";
APT::Get::List-Cleanup "true";
Acquire::Languages "none";
Acquire::Check-Valid-Until "false";
Acquire::Retries "3";
CONF
	if ! cmp -s "$dir/sources.list.new" "$dir/sources.list" ||
		[ -z "$(find "$dir/updated" -mtime -1 2>/dev/null)" ]; then
		rm -f "$dir/updated"
		mv "$dir/sources.list.new" "$dir/sources.list"
		apt-get -c "$dir/apt.conf" -qq --error-on=any update
		touch "$dir/updated"
	fi
	rm -f "$dir/sources.list.new"
}

apt_source() {
	printf '%s [signed-by=%s] %s %s main\n' "$1" "$APT_KEYRING" "$2" "$3"
}

# apt_closure <folder> <suite> <status file or ''> <package>...: download the
# packages with everything they depend on (no recommends) that the given dpkg
# status does not have; an empty status gives the whole closure.
apt_closure() {
	local out=$1 suite=$2 status=$3
	local conf=$TOOLS/apt/stable
	shift 3
	mkdir -p "$out/partial"
	apt-get -c "$conf/apt.conf" -o Dir::State::status="${status:-$conf/status}" \
		-o Dir::Cache::archives="$out" -o Debug::NoLocking=true \
		-qq --yes --download-only --target-release "$suite" install "$@"
	rm -rf "$out/partial" "$out/lock"
}

# apt_download <group> <folder> <package[/suite]>...: just these packages.
apt_download() {
	local group=$1 out=$2
	shift 2
	mkdir -p "$out"
	(cd "$out" && apt-get -c "$TOOLS/apt/$group/apt.conf" -qq download "$@")
}
