"""The PyTorch contestants of `peers.py`, each as its library's own documentation trains and predicts.

Every library is asked for the same thing: LeNet-5, N(0, 1) on every weight, one standard deviation of all
posteriors at the start, mean cross-entropy + KL / N with one draw of the weights a step, Adam. IVON is an
optimiser of its own, with its own learning rate; its weight decay of 1 / N is that prior, and its KL term
is nowhere computed. Batches are slices of one tensor, the cheapest that there is. "compiled" is what
`torch.compile` makes of the loss and of the outputs of the test images. Needs torch and the library, nothing
of JAX.
"""

import math
from functools import partial

import torch
from torch import nn
from torch.nn.functional import cross_entropy

WIDTHS = (6, 16, 120, 84, 10)


def lenet(conv=nn.Conv2d, dense=nn.Linear) -> nn.Sequential:
    """LeNet-5 of these layers."""
    a, b, c, d, e = WIDTHS
    pooled = lambda layer: (layer, nn.ReLU(), nn.MaxPool2d(2))
    trunk = (*pooled(conv(1, a, 5, padding=2)), *pooled(conv(a, b, 5)), nn.Flatten())
    return nn.Sequential(*trunk, dense(25 * b, c), nn.ReLU(), dense(c, d), nn.ReLU(), dense(d, e))


def prepared(problem):
    """A function that gives the next batch, and the test images, channels first, on the device."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    first = lambda x: torch.from_numpy(x).permute(0, 3, 1, 2).contiguous().to(on(problem))
    x, y, size = first(problem.x), torch.from_numpy(problem.y).long().to(on(problem)), problem.batch_size
    place = 0

    def batch():
        nonlocal place
        start, place = place, place + size
        if place + size > len(x):
            place = 0
        return x[start : start + size], y[start : start + size]

    return batch, first(problem.x_test)


def on(problem) -> str:
    """PyTorch's name of the device."""
    return "cuda" if problem.device == "gpu" else "cpu"


def as_it_is(f):
    """Not compiled."""
    return f


def functions(step, batch, one, kl=None):
    """What a worker wants, from step(x, y), one() -> a draw's outputs (T, K), and kl()."""

    def train(count):
        for _ in range(count):
            step(*batch())
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()

    def predict(count):
        with torch.no_grad():
            total = one().softmax(-1)
            for _ in range(count - 1):
                total += one().softmax(-1)
        return (total / count).cpu().numpy()

    return train, predict, kl


def with_adam(problem, model, loss, batch, test, kl=None, make=as_it_is):
    """`functions` of a model that draws its weights at every call, loss(x, y) -> (); `make` compiles."""
    model.to(on(problem))
    optimizer = torch.optim.Adam(model.parameters(), problem.learning_rate)
    loss, outputs = make(loss), make(model)

    def step(x, y):
        optimizer.zero_grad()
        loss(x, y).backward()
        optimizer.step()

    return functions(step, batch, lambda: outputs(test), kl)


def widths(model, word: str, std: float) -> None:
    """Every parameter whose name has `word` gives this standard deviation, softplus of it."""
    with torch.no_grad():
        for name, values in model.named_parameters():
            if word in name:
                values.fill_(math.log(math.expm1(std)))


def posterior(model, mean: str, rho: str):
    """Means and standard deviations, from the parameters whose names have these words."""
    named = [(name, values.detach()) for name, values in model.named_parameters()]
    means = [values.cpu().numpy() for name, values in named if mean in name]
    return means, [nn.functional.softplus(values).cpu().numpy() for name, values in named if rho in name]


def average(value, count: int = 30) -> float:
    """Of an estimate from one draw."""
    with torch.no_grad():
        return sum(float(value()) for _ in range(count)) / count


def deterministic(problem, make=as_it_is):
    """The plain network; a "draw" is a forward pass."""
    batch, test = prepared(problem)
    model = lenet()
    return with_adam(problem, model, lambda x, y: cross_entropy(model(x), y), batch, test, make=make)


def ivon(problem, make=as_it_is):
    """`ivon.IVON`, learning rate 0.1 as in its examples."""
    from ivon import IVON

    batch, test = prepared(problem)
    model, num_data = lenet().to(on(problem)), len(problem.x)
    prior, precision = 1 / num_data, 1 / (num_data * problem.std**2)  # that of the start has the prior in it
    settings = dict(ess=num_data, weight_decay=prior, hess_init=precision - prior)
    optimizer = IVON(model.parameters(), lr=0.1, **settings)
    loss, outputs = make(lambda x, y: cross_entropy(model(x), y)), make(model)

    def step(x, y):
        with optimizer.sampled_params(train=True):
            optimizer.zero_grad()
            loss(x, y).backward()
        optimizer.step()

    def one():
        with optimizer.sampled_params():
            return outputs(test)

    return functions(step, batch, one)


def bayesian_torch(problem, kind="Reparameterization", make=as_it_is):
    """`dnn_to_bnn` with layers of this kind."""
    from bayesian_torch.models.dnn_to_bnn import dnn_to_bnn, get_kl_loss

    batch, test = prepared(problem)
    model, num_data = lenet(), len(problem.x)
    settings = dict(prior_mu=0.0, prior_sigma=1.0, posterior_mu_init=0.0, posterior_rho_init=-3.0)
    dnn_to_bnn(model, dict(**settings, type=kind, moped_enable=False, moped_delta=0.5))
    widths(model, "rho_", problem.std)
    loss = lambda x, y: cross_entropy(model(x), y) + get_kl_loss(model) / num_data
    kl = lambda: (average(lambda: get_kl_loss(model), 1), *posterior(model, "mu_", "rho_"))
    return with_adam(problem, model, loss, batch, test, kl, make)


def blitz(problem):
    """Its layers and `sample_elbo`; both parts of its mixture prior are N(0, 1)."""
    from blitz.modules import BayesianConv2d, BayesianLinear
    from blitz.utils import variational_estimator

    prior = dict(prior_sigma_1=1.0, prior_sigma_2=1.0, prior_pi=0.5)
    conv = lambda i, o, k, padding=0: BayesianConv2d(i, o, (k, k), padding=padding, **prior)
    batch, test = prepared(problem)

    @variational_estimator
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = lenet(conv, lambda i, o: BayesianLinear(i, o, **prior))

        def forward(self, x):
            return self.layers(x)

    model, criterion, num_data = Net(), nn.CrossEntropyLoss(), len(problem.x)
    widths(model, "_rho", problem.std)

    def loss(x, y):
        settings = dict(criterion=criterion, sample_nbr=1, complexity_cost_weight=1 / num_data)
        return model.sample_elbo(inputs=x, labels=y, **settings)

    def once():
        model(test[:1])
        return model.nn_kl_divergence()

    kl = lambda: (average(once), *posterior(model, "_mu", "_rho"))
    return with_adam(problem, model, loss, batch, test, kl)


def posteriors(problem):
    """`posteriors.vi.diag`, whose KL is in the log posterior and the temperature."""
    import posteriors as library
    import torchopt
    from torch.func import functional_call

    batch, test = prepared(problem)
    model, num_data = lenet().to(on(problem)), len(problem.x)
    log_prior = lambda params: library.diag_normal_log_prob(params) / num_data

    def log_posterior(params, given):
        x, y = given
        outputs = functional_call(model, params, (x,))
        return log_prior(params) - cross_entropy(outputs, y), outputs

    settings = dict(temperature=1 / num_data, init_log_sds=math.log(problem.std))
    method = library.vi.diag.build(log_posterior, torchopt.adam(problem.learning_rate), **settings)
    state = method.init({name: values.detach() for name, values in model.named_parameters()})

    def step(x, y):
        nonlocal state
        state, _ = method.update(state, (x, y))

    def one():
        return functional_call(model, library.vi.diag.sample(state), (test,))

    def kl():
        means, stds = state.params, {k: v.exp() for k, v in state.log_sd_diag.items()}
        bare = lambda params, given: (log_prior(params), test.new_zeros(()))
        nelbo = lambda: library.vi.diag.nelbo(means, stds, None, bare, 1 / num_data)[0]
        flat = lambda tree: [values.cpu().numpy() for values in tree.values()]
        return num_data * average(nelbo), flat(means), flat(stds)

    return functions(step, batch, one, kl)


def torch_uncertainty(problem):
    """Its layers and `ELBOLoss`; both parts of its mixture prior are N(0, 1)."""
    from torch_uncertainty.layers.bayesian import BayesConv2d, BayesLinear
    from torch_uncertainty.losses import ELBOLoss
    from torch_uncertainty.losses.bayesian import KLDiv

    prior = dict(prior_sigma_1=1.0, prior_sigma_2=1.0, prior_pi=0.5)
    conv = lambda i, o, k, padding=0: BayesConv2d(i, o, k, padding=padding, **prior)
    batch, test = prepared(problem)
    model = lenet(conv, lambda i, o: BayesLinear(i, o, **prior))
    widths(model, "_sigma", problem.std)
    loss = ELBOLoss(model, nn.CrossEntropyLoss(), kl_weight=1 / len(problem.x), num_samples=1)

    def once():
        model(test[:1])
        return KLDiv(model)()

    kl = lambda: (average(once), *posterior(model, "_mu", "_sigma"))
    return with_adam(problem, model, loss, batch, test, kl)


IVON = ("torch", "ivon")
BAYESIAN_TORCH = ("torch", "bayesian_torch.models.dnn_to_bnn")
CONTESTANTS = {
    "torch, deterministic": (("torch",), deterministic),
    "ivon-opt": (IVON, ivon),
    "bayesian-torch": (BAYESIAN_TORCH, bayesian_torch),
    "bayesian-torch, flipout": (BAYESIAN_TORCH, partial(bayesian_torch, kind="Flipout")),
    "blitz": (("torch", "blitz.modules", "blitz.utils"), blitz),
    "posteriors": (("torch", "torchopt", "posteriors"), posteriors),
    "torch-uncertainty": (
        ("torch", "torch_uncertainty.layers.bayesian", "torch_uncertainty.losses"),
        torch_uncertainty,
    ),
    "torch, deterministic, compiled": (("torch",), partial(deterministic, make=torch.compile)),
    "ivon-opt, compiled": (IVON, partial(ivon, make=torch.compile)),
    "bayesian-torch, compiled": (BAYESIAN_TORCH, partial(bayesian_torch, make=torch.compile)),
}
