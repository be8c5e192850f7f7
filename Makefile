# make            the quick checks, without root, below a minute
# make test       everything that must pass (as root: the live tests build network namespaces), below 10 minutes
# make unprivileged   the live tests again, with each daemon under `set setuid` (docs/privileges.md); needs root, as they do
# make demo       three subscribers through a LAC, the server and a host beyond it (KEEP=1: stay up to play with)
# make interop    xl2tpd, pppd and FreeRADIUS of Debian, the clients in a virtual machine
# make slow       what takes too long for `make test`: 500 sessions and kill -9, 1,000 sessions and each signal, minutes of outage
# make bench      this server, the C l2tpns and plain forwarding side by side (QUICK=1: one run, below three minutes)
# make fuzz       a million hostile datagrams at a live daemon
# make soak       10,000 sessions for five minutes, then a hundred cycles of 200 sessions up and down
# make docs       write the generated pages again   make fmt      lay out the source
# make fastpath   compile the kernel programs again: fastpath.o is shipped, clang is needed only to change them
# make install    PREFIX=/usr; PREFIX=/opt/x puts everything below it; DESTDIR=dir stages; root makes the user l2tpns
# make uninstall  leaves edited configuration, saved state and the user where they are

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.ready
CODE := setup.py l2tpns modules tests tools bench
KEEP ?=
QUICK ?=

# Most live tests wait for most of their time: twice as many workers as cores, each in a network of its own. A file stays
# together, for its tests share what takes long to build.
WORKERS ?= 4
PARALLEL := -n $(WORKERS) --dist loadfile

# Tests that the programs of the fast path have to pass as user space does.
BOTH_PATHS := $(patsubst %,tests/live/test_%.py,filters garden life plugins pppd privileges saved_state snoop)

PREFIX ?= /usr
DESTDIR ?=
ifeq ($(PREFIX),/usr)
ETC := /etc/l2tpns
STATE := /var/lib/l2tpns
else
ETC := $(PREFIX)/etc/l2tpns
STATE := $(PREFIX)/var/lib/l2tpns
endif
SBIN := $(PREFIX)/sbin
LIB := $(PREFIX)/lib/l2tpns
UNIT := $(PREFIX)/lib/systemd/system/l2tpns.service
SYSUSERS := $(PREFIX)/lib/sysusers.d/l2tpns.conf
ACCOUNT := l2tpns
PLUGINS = $(notdir $(wildcard modules/*.py))
PROGRAMS = l2tpns nsctl l2tpns-capture
INSTALLER := build/installer

.PHONY: check venv fmt test unprivileged slow demo interop bench soak fuzz docs fastpath install uninstall clean

check: $(STAMP)
	$(VENV)/bin/ruff format --quiet --check $(CODE)
	$(VENV)/bin/ruff check --quiet $(CODE)
	$(VENV)/bin/mypy --no-error-summary
	$(PY) -m pytest tests/unit
	$(PY) -m tools.docs --check

venv: $(STAMP)

$(STAMP): setup.py tools/setup.sh
	sh tools/setup.sh build run
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch $@

fmt: $(STAMP)
	$(VENV)/bin/ruff format --quiet $(CODE)
	$(VENV)/bin/ruff check --quiet --fix $(CODE)

test: $(STAMP)
	sh tools/setup.sh test
	@# Two runs: an event loop whose greenlets start processes reaps every child, and the live tests' exit statuses with it.
	$(PY) -m pytest $(PARALLEL) -m "not interop and not slow" --ignore=tests/live tests
	$(PY) -m pytest $(PARALLEL) -m "not interop and not slow" --durations=10 tests/live
	@# What sessions do with packets once more, carried by the kernel.
	L2TPNS_TEST_FAST_PATH=on $(PY) -m pytest $(PARALLEL) -m "not interop and not slow" $(BOTH_PATHS)

# A number of no user of any machine. The directory is the tests' own: pytest closes those that it makes itself to others.
UNPRIVILEGED ?= 31701
UNPRIVILEGED_TESTS ?= -m "not interop and not slow" --durations=10 tests/live

unprivileged: $(STAMP)
	sh tools/setup.sh test
	base=$$(mktemp -d) && trap 'rm -rf "$$base"' EXIT && \
		L2TPNS_TEST_SETUID=$(UNPRIVILEGED) $(PY) -m pytest $(PARALLEL) --basetemp="$$base/tests" $(UNPRIVILEGED_TESTS)

slow: $(STAMP)
	sh tools/setup.sh test
	$(PY) -m pytest -m "slow and not interop" -v tests

demo: $(STAMP)
	sh tools/setup.sh demo
	$(PY) -m tools.demo $(if $(KEEP),--keep)

interop: $(STAMP)
	sh tools/setup.sh test
	$(PY) -m pytest -m interop -v tests/live

bench: $(STAMP)
	sh tools/setup.sh bench
	$(PY) -m bench.compare $(if $(QUICK),--quick)

soak: $(STAMP)
	sh tools/setup.sh bench
	$(PY) -m bench soak cycles

fuzz: $(STAMP)
	sh tools/setup.sh demo
	$(PY) -m tools.fuzz

docs: $(STAMP)
	$(PY) -m tools.docs

# The object holds the hash of its source, which a test compares. -mcpu=v3: atomic operations that return the old value.
FASTPATH := l2tpns/dataplane/fastpath
fastpath:
	sh tools/setup.sh fastpath
	hash=$$(cat $(FASTPATH)/*.[ch] | sha256sum | cut -d' ' -f1) && \
		clang -O2 -g -fdebug-compilation-dir=. -mcpu=v3 -target bpf -Wall -Wextra -Werror -DSOURCE_HASH=\"$$hash\" \
			-I/usr/include/$$(gcc -print-multiarch) -c $(FASTPATH)/fastpath.c -o $(FASTPATH)/fastpath.o
	llvm-strip -g $(FASTPATH)/fastpath.o

# The server gives up root for the user l2tpns (`set setuid`), who has to be able to read all of this: hence the umask.
# The installed packages are laid into the virtual environment with --target and started by a launcher with absolute
# paths: so nothing in it holds the name of the staging directory.
install:
	sh tools/setup.sh build run
	rm -rf build/lib build/bdist.* $(DESTDIR)$(LIB)/venv.new
	[ -x $(INSTALLER)/bin/pip ] || $(PYTHON) -m venv $(INSTALLER)
	umask 022 && install -d $(DESTDIR)$(SBIN) $(DESTDIR)$(LIB)/etc $(DESTDIR)$(dir $(UNIT)) $(DESTDIR)$(dir $(SYSUSERS))
	@# One that is there keeps its mode: root may have let the server write to it (docs/privileges.md).
	[ -d $(DESTDIR)$(ETC) ] || (umask 022 && install -d -m 750 $(DESTDIR)$(ETC))
	umask 022 && install -d -m 700 $(DESTDIR)$(STATE)
	$(PYTHON) -m venv --without-pip $(DESTDIR)$(LIB)/venv.new
	cd $(DESTDIR)$(LIB)/venv.new && rm -f bin/[Aa]ctivate* && sed -i '/^command = /d' pyvenv.cfg
	site=$$(echo $(DESTDIR)$(LIB)/venv.new/lib/python3*/site-packages) && \
		$(INSTALLER)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile --target "$$site" . && \
		rm -rf "$$site/bin" && \
		$(DESTDIR)$(LIB)/venv.new/bin/python -m compileall -q -s "$$site" -p $(LIB)/venv/lib/$$(basename $$(dirname "$$site"))/site-packages "$$site"
	chmod -R go=rX $(DESTDIR)$(LIB)/venv.new
	rm -rf $(DESTDIR)$(LIB)/venv
	mv $(DESTDIR)$(LIB)/venv.new $(DESTDIR)$(LIB)/venv
	for plugin in $(PLUGINS); do install -m 644 modules/$$plugin $(DESTDIR)$(LIB)/$$plugin || exit 1; done
	rm -rf $(DESTDIR)$(LIB)/docs
	install -d $(DESTDIR)$(LIB)/docs/decisions
	install -m 644 README.md $(DESTDIR)$(LIB)/README.md
	install -m 644 docs/*.md $(DESTDIR)$(LIB)/docs
	install -m 644 docs/decisions/*.md $(DESTDIR)$(LIB)/docs/decisions
	for program in $(PROGRAMS); do \
		module=l2tpns; [ $$program = l2tpns ] || module=l2tpns.$${program#l2tpns-}; \
		printf '%s\n' '#!/bin/sh' '# Where this installation lives; its Python packages are its own.' \
			'export L2TPNS_ETC="$${L2TPNS_ETC:-$(ETC)}"' 'export L2TPNS_LIB="$${L2TPNS_LIB:-$(LIB)}"' \
			'export L2TPNS_STATE="$${L2TPNS_STATE:-$(STATE)}"' \
			"exec $(LIB)/venv/bin/python -I -m $$module \"\$$@\"" >$(DESTDIR)$(SBIN)/$$program && \
		chmod 755 $(DESTDIR)$(SBIN)/$$program || exit 1; \
	done
	sed -e 's|@SBIN@|$(SBIN)|' -e 's|@LIB@|$(LIB)|' -e 's|@ETC@|$(ETC)|' -e 's|@STATE@|$(STATE)|' \
		etc/systemd/l2tpns.service.in >$(DESTDIR)$(UNIT) && chmod 644 $(DESTDIR)$(UNIT)
	install -m 644 etc/systemd/l2tpns.sysusers.conf $(DESTDIR)$(SYSUSERS)
	@# A file that is as the last installation left it follows the new default; an edited one stays, a deleted one stays away.
	@for file in etc/l2tpns/*; do \
		to=$(DESTDIR)$(ETC)/$${file##*/}; last=$(DESTDIR)$(LIB)/etc/$${file##*/}; \
		if cmp -s $$to $$last || { [ ! -e $$to ] && [ ! -e $$last ]; }; then \
			install -m 600 $$file $$to || exit 1; \
		elif [ -e $$to ] && ! cmp -s $$file $$to && ! cmp -s $$file $$last; then \
			install -m 600 $$file $$to.new && echo "$$to was edited and stays; the new default is $$to.new" || exit 1; \
		fi; \
		install -m 600 $$file $$last || exit 1; \
	done
	@# The user of `set setuid`, and its right to read what the server reads again at each reload. A package does this in
	@# its postinst.
	@[ -n "$(DESTDIR)" ] || [ "$$(id -u)" != 0 ] || getent passwd $(ACCOUNT) >/dev/null || \
		useradd --system --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin \
			--comment "L2TP network server" $(ACCOUNT)
	@if ! grep -qsE '^[[:space:]]*set[[:space:]]+setuid[[:space:]]+"?$(ACCOUNT)"?[[:space:]]*$$' $(DESTDIR)$(ETC)/l2tpns.cfg; then \
		echo "The server stays root: $(ETC)/l2tpns.cfg does not have 'set setuid $(ACCOUNT)' ($(LIB)/docs/privileges.md)"; \
	elif [ -n "$(DESTDIR)" ] || [ "$$(id -u)" != 0 ]; then \
		echo "Before it starts, the user $(ACCOUNT) has to be made, and be able to read $(ETC): $(LIB)/docs/privileges.md"; \
	else \
		group=$$(id -g $(ACCOUNT)) && chgrp $$group $(ETC) && \
		find $(ETC) -maxdepth 1 -type f -user root -exec chgrp $$group {} + -exec chmod g+rX,g-w {} +; \
	fi
	@[ -n "$(DESTDIR)" ] || [ ! -d /run/systemd/system ] || systemctl daemon-reload
	@echo "Installed $(SBIN)/l2tpns; edit $(ETC)/l2tpns.cfg, then start it."

uninstall:
	@# What a server that crashed has left in the kernel; one that runs keeps what it has.
	@[ -n "$(DESTDIR)" ] || [ ! -x $(SBIN)/l2tpns ] || $(SBIN)/l2tpns --clean-kernel || true
	rm -f $(foreach program,$(PROGRAMS),$(DESTDIR)$(SBIN)/$(program)) $(DESTDIR)$(UNIT) $(DESTDIR)$(SYSUSERS)
	@for last in $(DESTDIR)$(LIB)/etc/*; do \
		[ -e "$$last" ] || continue; \
		file=$(DESTDIR)$(ETC)/$${last##*/}; rm -f $$file.new; \
		if cmp -s $$file $$last; then rm -f $$file; elif [ -e $$file ]; then echo "$$file was edited and stays"; fi; \
	done
	rm -rf $(DESTDIR)$(LIB)/venv $(DESTDIR)$(LIB)/etc $(DESTDIR)$(LIB)/docs $(DESTDIR)$(LIB)/__pycache__ $(DESTDIR)$(LIB)/README.md
	rm -f $(foreach plugin,$(PLUGINS),$(DESTDIR)$(LIB)/$(plugin))
	@for directory in $(LIB) $(ETC) $(STATE); do \
		[ ! -d $(DESTDIR)$$directory ] || rmdir --ignore-fail-on-non-empty $(DESTDIR)$$directory; \
	done
	@[ -n "$(DESTDIR)" ] || [ ! -d /run/systemd/system ] || systemctl daemon-reload
	@# Files may belong to it, and its number must not come back as another user's.
	@[ -n "$(DESTDIR)" ] || ! getent passwd $(ACCOUNT) >/dev/null || echo "The user $(ACCOUNT) stays"

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
