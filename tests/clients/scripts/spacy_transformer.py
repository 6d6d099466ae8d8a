"""spaCy: run spacy-transformers' pipe on the folder, with its defaults."""

import spacy
from checks import numbers, run_checks


def load(check):
    nlp = spacy.blank("en")
    pipe = nlp.add_pipe("transformer", config={"model": {"name": check["folder"]}})
    pipe.model.initialize()

    def answer(given):
        hidden = nlp(given["text"])._.trf_data.model_output.last_hidden_state
        return {"mean": numbers(hidden[0].mean(axis=0))}

    return answer


run_checks(load, ["spacy", "spacy-transformers", "transformers"])
