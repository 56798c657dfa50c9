from thinner.compress import criteria as criteria
from thinner.compress import masks as masks
from thinner.data import views as views
from thinner.errors import UserError as UserError
from thinner.learn import losses as losses
from thinner.learn import signals as signals
from thinner.learn import training as training
from thinner.network import Network as Network
from thinner.network import Prediction as Prediction
from thinner.network import UnreadablePictureError as UnreadablePictureError
from thinner.network import load as load
from thinner.networks import checkpoint as checkpoint
from thinner.networks import export as export
from thinner.networks import models as models

__all__ = ["Network", "Prediction", "UnreadablePictureError", "UserError", "load"]
