"""The chapters, in the order of the argument."""

from rebasin_utils.chapters.alignment_cost import ALIGNMENT_COST
from rebasin_utils.chapters.at_scale import AT_SCALE
from rebasin_utils.chapters.basins import BASINS
from rebasin_utils.chapters.modes import MODES
from rebasin_utils.chapters.other_data import OTHER_DATA
from rebasin_utils.chapters.paper_tables import PAPER_TABLES
from rebasin_utils.chapters.sign_or_permutation import SIGN_OR_PERMUTATION
from rebasin_utils.chapters.sparse_training import SPARSE_TRAINING
from rebasin_utils.chapters.ticket import TICKET
from rebasin_utils.chapters.toy import TOY
from rebasin_utils.chapters.variance import VARIANCE
from rebasin_utils.chapters.width import WIDTH
from rebasin_utils.chapters.winning_sign import WINNING_SIGN

CHAPTERS = [
    TOY,
    BASINS,
    TICKET,
    SPARSE_TRAINING,
    WIDTH,
    VARIANCE,
    MODES,
    ALIGNMENT_COST,
    PAPER_TABLES,
    AT_SCALE,
    WINNING_SIGN,
    SIGN_OR_PERMUTATION,
    OTHER_DATA,
]
