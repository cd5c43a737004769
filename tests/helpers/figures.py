"""Read what a matplotlib figure shows."""


def texts(figure):
    return " | ".join(text.get_text() for text in figure.findobj(lambda a: hasattr(a, "get_text")))
