# Nothing has to be installed or activated first: every target makes what it needs in $(VENV).
#
#   make test                        make test ARGS='tests/test_pool.py -k fork'
#   make flask-voice                 or django-text
#   make twilio-flask                and in another terminal: make twilio-call ARGS='--keys 10'
#   make demo                        make demo ARGS=--real     (needs OPENAI_API_KEY; costs money)
#   make test PYTHON=python3.13 VENV=.venv-3.13
#   make bench ARGS=--quick          make bench ARGS='pools idle'

SHELL := /bin/sh
VENV ?= .venv
# The benchmarks' peers are nothing that tests, or you, should find installed by chance.
BENCH := $(VENV)-bench
JOBS ?= auto
ARGS ?=
export PYTHON

# A stamp is out of date when what is installed may have changed, or the interpreter under the environment is gone.
INPUTS := setup.cfg setup.py pyproject.toml .ci/venv
remake_if_gone = $(if $(shell $(1)/bin/python -c 'print(1)' 2>/dev/null),,remake)

.PHONY: help demo flask-voice django-text twilio-flask twilio-call audiocodes-flask audiocodes-call test bench lint types coverage docs dashboard-shot clean remake
.DEFAULT_GOAL := help

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1	\2/p' Makefile | expand -t 24

demo: $(VENV)/.stamp-cli,emulator,speed ## the main job in a minute: 40 spoken calls, by hand and with the pool
	@$(VENV)/bin/rtpool demo $(ARGS)

flask-voice: $(VENV)/.stamp-flask,emulator,speed ## the example web application: http://127.0.0.1:5000, PORT=8000 for another
	@$(VENV)/bin/python docs/examples/flask_voice/app.py

django-text: $(VENV)/.stamp-django,emulator,speed ## the same in Django, in text: http://127.0.0.1:8000
	@$(VENV)/bin/python docs/examples/django_text/run.py

twilio-flask: $(VENV)/.stamp-audio,emulator,speed,telephony ## a telephone hotline for Twilio: http://127.0.0.1:5000
	@$(VENV)/bin/python docs/examples/twilio_flask/app.py

twilio-call: $(VENV)/.stamp-audio,emulator,speed,telephony ## a call to it, without a telephone
	@$(VENV)/bin/python docs/examples/twilio_flask/call.py $(ARGS)

audiocodes-flask: $(VENV)/.stamp-audio,emulator,speed,telephony ## the same for AudioCodes VoiceAI Connect
	@$(VENV)/bin/python docs/examples/audiocodes_flask/app.py

audiocodes-call: $(VENV)/.stamp-audio,emulator,speed,telephony ## a call to that
	@$(VENV)/bin/python docs/examples/audiocodes_flask/call.py $(ARGS)

test: $(VENV)/.stamp-test ## every test, with coverage
	@.ci/venv packages tests/system-packages.txt
	@.ci/venv node $(VENV) tests/aimock
	@.ci/venv folder $(VENV) tests/contrib/openai/oldest.txt build/openai-oldest
	@$(VENV)/bin/python -m pytest -n $(JOBS) --maxprocesses 4 --cov --cov-report= --cov-report=term $(ARGS)

bench: $(BENCH)/.stamp-bench ## how fast it is beside everything one would use instead: a quarter of an hour
	@$(BENCH)/bin/rtpool bench $(ARGS)

coverage: test ## the same, and a page for each file in htmlcov/
	@$(VENV)/bin/python -m coverage html --quiet
	@echo "==> htmlcov/index.html"

lint: $(VENV)/.stamp-dev ## ruff: rules and layout
	@$(VENV)/bin/ruff check $(ARGS)
	@$(VENV)/bin/ruff format --check $(ARGS)

types: $(VENV)/.stamp-dev ## mypy --strict
	@$(VENV)/bin/mypy $(ARGS)

docs: $(VENV)/.stamp-docs ## the documentation as a web site, in build/docs/
	@$(VENV)/bin/sphinx-build -q -W -b html docs build/docs
	@echo "==> build/docs/index.html"

dashboard-shot: $(VENV)/.stamp-test ## pictures of dashboard and status page with pools at work, into docs/images/
	@.ci/venv packages tests/system-packages.txt
	@.ci/venv node $(VENV) grafana/picture
	@$(VENV)/bin/python grafana/picture/draw.py $(ARGS)

clean: ## remove everything that these commands made
	@rm -rf $(VENV) $(BENCH) build dist htmlcov demo-output reply.wav *.egg-info .coverage .coverage.* .mypy_cache .ruff_cache \
		.pytest_cache .hypothesis tests/aimock/node_modules grafana/picture/node_modules
	@find . -path './$(VENV)*' -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.stamp-%: $(INPUTS) $(call remake_if_gone,$(VENV))
	@.ci/venv install $(VENV) $*
	@touch $@

$(BENCH)/.stamp-bench: $(INPUTS) benchmarks/requirements.txt $(call remake_if_gone,$(BENCH))
	@.ci/venv install $(BENCH) cli,emulator,openai,speed
	@echo "==> installing what the benchmarks compare with"
	@$(BENCH)/bin/python -m pip install --quiet --quiet --disable-pip-version-check -r benchmarks/requirements.txt
	@touch $@

remake:
