# make demo   virtual environment, synthetic data, a small trfe trained and evaluated
# make test   virtual environment, style, tests
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
DEMO = run/demo

.PHONY: demo test test-slow lint figures clean

# Each stamp is made anew when its requirements change.
$(VENV)/core.stamp: requirements.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -r requirements.txt
	touch $@

$(VENV)/dev.stamp: requirements.txt requirements-export.txt requirements-dev.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -r requirements-dev.txt
	touch $@ $(VENV)/core.stamp

demo: $(VENV)/core.stamp
	rm -rf $(DEMO)
	$(BIN)/python train.py -dataset PHANTOM -model_name trfe -width 16 -input_size 128 -nepochs 16 -run_root $(DEMO)
	$(BIN)/python eval.py -load_path $(DEMO)/run_0/trfe_best.pth

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

test: lint
	$(BIN)/python -m pytest --ignore=tests/test_export.py
# By itself: after many other tests in one process, onnxruntime and OpenVINO have crashed it.
	$(BIN)/python -m pytest tests/test_export.py

test-slow: lint
	$(BIN)/python -m pytest -m slow

figures: $(VENV)/dev.stamp
	$(BIN)/python picture/draw_figures.py

clean:
	rm -rf $(VENV) $(DEMO) .pytest_cache .ruff_cache
